"""Work units and shard layouts depend only on the image list; a lost unit is run again image by image."""

import numpy as np
import pytest
from PIL import Image

from sohes_d2.data.sources import ImageItem, ImageList
from sohes_d2.labeling import units as units_module
from sohes_d2.labeling.units import STAGES, ImageResult, ShardLayout, UnitResult, WorkUnit, plan_units, run_with_retries


@pytest.mark.parametrize(
    "images, jobs, limit", [(1, 1, 1000), (24, 3, 1000), (25, 3, 4), (5, 8, 1000), (2001, 2, 1000)]
)
def test_jobs_cover_all_images_without_overlap(images, jobs, limit):
    layouts = [ShardLayout.plan(images, job, jobs, limit) for job in range(jobs)]
    shards = [shard for layout in layouts for shard in layout.own_shards()]
    assert sorted(shards) == list(range(layouts[0].shards))
    positions = [position for shard in sorted(shards) for position in layouts[0].positions(shard)]
    assert positions == list(range(images))
    assert max(len(layouts[0].positions(shard)) for shard in shards) <= limit


def test_units_have_images_of_one_size_in_order(tmp_path, monkeypatch):
    sizes = [(4, 6), (6, 4), (4, 6), (4, 6), (6, 4), (9, 9), (4, 6), (4, 6)]
    names = [f"{k}.png" for k in range(len(sizes))]
    for name, size in zip(names, sizes):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / names[3]).write_bytes(b"broken")
    images = ImageList(str(tmp_path), "list", names)

    def plan(batch_size):
        return [[item.image_id for item in unit.items] for unit in plan_units(images[:], 0, batch_size)]

    assert plan(3) == [[1, 3, 7], [2, 5], [4], [6], [8]]
    assert plan(1) == [[k] for k in range(1, 9)]
    monkeypatch.setattr(units_module, "MAX_UNIT_PIXELS", 50)  # two images of 24 pixels, one of 81
    assert plan(3) == [[1, 3], [2, 5], [4], [6], [7, 8]]


def test_a_lost_unit_is_run_again_image_by_image():
    items = [ImageItem(k, f"{k}.png", f"{k}.png") for k in range(1, 7)]
    units = [WorkUnit(0, 0, tuple(items[:2])), WorkUnit(0, 1, tuple(items[2:5])), WorkUnit(1, 0, tuple(items[5:]))]
    submitted, most = [], 0

    def wait():
        nonlocal most
        most = max(most, len({(unit.shard, unit.number) for unit in submitted}))
        unit = submitted.pop()  # the last one first
        if items[3] in unit.items:
            return unit, "its worker died"
        results = [ImageResult(item.image_id, [b"{}"], masks=len(unit.items)) for item in unit.items]
        return unit, UnitResult(unit, results, dict.fromkeys(STAGES, 1.0))

    found = {result.unit: result for result in run_with_retries(iter(units), 2, submitted.append, wait)}
    assert list(found) == [units[1], units[2], units[0]] and most == 2
    assert [[result.image_id for result in found[unit].results] for unit in units] == [[1, 2], [3, 4, 5], [6]]
    assert [result.masks for result in found[units[0]].results] == [2, 2]
    lost = found[units[1]]
    assert [result.masks for result in lost.results] == [1, 0, 1] and lost.seconds["read"] == 2
    assert lost.results[1].skipped == {
        "id": 4,
        "file_name": "4.png",
        "step": "worker",
        "reason": "its worker died",
    }

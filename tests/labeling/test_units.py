"""Work units and shard layouts depend only on the image list, and cover each image once."""

import numpy as np
import pytest
from PIL import Image

from sohes_d2.data.sources import ImageList
from sohes_d2.labeling import units as units_module
from sohes_d2.labeling.units import ShardLayout, plan_units


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
    layout = ShardLayout.plan(len(images))

    def plan(batch_size):
        return [[item.image_id for item in unit.items] for unit in plan_units(images, layout, 0, batch_size)]

    assert plan(3) == [[1, 3, 7], [2, 5], [4], [6], [8]]
    assert plan(1) == [[k] for k in range(1, 9)]
    monkeypatch.setattr(units_module, "MAX_UNIT_PIXELS", 50)  # two images of 24 pixels, one of 81
    assert plan(3) == [[1, 3], [2, 5], [4], [6], [7, 8]]

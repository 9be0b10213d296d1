"""`sohes inspect`: statistics of a handmade file, the same for every kind of label file, and errors."""

import json

import numpy as np
import pytest
from PIL import Image

from sohes_d2.cli import inspect as tool
from sohes_d2.errors import InputError
from sohes_d2.labels.statistics import AREA_BINS, LabelStatistics, inspect_labels
from sohes_d2.labels.writer import SEPARATOR, dump_line, image_record, write_checked_json, write_label_file
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

SIZE = (100, 200)


def forest(*boxes, parents=None):
    masks = np.zeros((len(boxes), *SIZE), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    return Forest(encode_masks(masks), [-1] * len(boxes) if parents is None else parents, SIZE)


# Areas of image 0: 10000 (half of it), 2500, 25. Image 1 has no masks; those of 2 overlap by half and cover 3/8 of it.
FORESTS = [
    forest((0, 0, 100, 100), (0, 0, 50, 50), (0, 0, 5, 5), parents=[-1, 0, 1]),
    forest(),
    forest((0, 0, 100, 50), (0, 25, 100, 75)),
]


def records():
    images = [image_record(k + 1, f"{k}.jpg", *SIZE) for k in range(len(FORESTS))]
    annotations = [a for k, f in enumerate(FORESTS) for a in f.to_coco(k + 1, 1 + 100 * k)]
    return images, annotations


def write_ours(path, images=None, annotations=None):
    images, annotations = records() if images is None else (images, annotations)
    blocks = [[[SEPARATOR.join(map(dump_line, part))]] if part else [] for part in ([], images, annotations)]
    write_label_file(str(path), {}, dict(zip(("skipped", "images", "annotations"), blocks)))


@pytest.fixture(params=["ours", "plain", "shards"])
def labels(request, tmp_path):
    """The same labels in our layout, as plain json, and as shards, one of which is missing."""
    images, annotations = records()
    if request.param == "ours":
        write_ours(tmp_path / "labels.json")
        return tmp_path / "labels.json"
    if request.param == "plain":
        (tmp_path / "c.json").write_text(json.dumps({"annotations": annotations, "images": images}, indent=2))
        return tmp_path / "c.json"
    folder = tmp_path / "shards"
    folder.mkdir()
    write_ours(folder / "shard_00000.json", images[:1], annotations[:3])
    write_ours(folder / "shard_00002.json", images[1:], annotations[3:])
    write_checked_json(str(folder / "run.json"), {"layout": {"shards": 3}})
    return folder


def test_counts_of_any_kind_of_file(labels):
    found = inspect_labels(str(labels), outstanding=2)
    assert (found.images, found.masks, len(found.problems), found.has_hierarchy) == (3, 5, 0, True)
    assert found.masks_per_image.tolist() == [3, 0, 2] and found.deepest.tolist() == [2, -1, 0]
    assert found.coverage.tolist() == [0.5, 0.0, 0.375]
    assert dict(found.depth) == {0: 3, 1: 1, 2: 1}
    summary = found.summary()
    assert summary["masks_per_image"] == {"min": 0, "mean": 1.6667, "median": 2, "max": 3}
    assert summary["size_histogram"] == {"small": 1, "medium": 3, "large": 1}
    assert summary["relative_size_histogram"] == {"<0.1%": 0, "0.1-1%": 1, "1-10%": 0, ">=10%": 4}
    histogram = {round(float(AREA_BINS[k]), 5): int(n) for k, n in enumerate(found.area_histogram) if n}
    assert histogram == {0.001: 1, 0.1: 1, 0.17783: 2, 0.31623: 1}
    names = {name: [row.file_name for row in rows] for name, rows in found.outstanding.items()}
    assert names == {
        "most masks": ["0.jpg", "2.jpg"],
        "fewest masks": ["1.jpg", "2.jpg"],
        "least covered": ["1.jpg", "2.jpg"],
        "deepest": ["0.jpg", "2.jpg"],
    }
    sample = inspect_labels(str(labels), max_images=2)
    assert sample.masks_per_image.tolist() == [3, 2]


def test_tool_prints_plots_and_writes(labels, tmp_path, capsys):
    plot, output = tmp_path / "p.png", tmp_path / "numbers.json"
    assert tool.main(["--labels", str(labels), "--plot", str(plot), "--output", str(output), "--list", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("3 images, 5 masks\n")
    for line in ("| depth 0 | 3 | 60.0% |", "| coverage of an image | 0.0% | 29.2% | 37.5% | 50.0% |"):
        assert line in " ".join(printed.split())
    assert "| deepest | 0.jpg | 3 | 2 | 50.0% |" in " ".join(printed.split())
    assert json.loads(output.read_text())["coverage"]["median"] == 0.375
    with Image.open(plot) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (900, 1320, 3)
    assert (pixels == (0x35, 0x73, 0xD9)).all(axis=2).sum() > 1000  # bars, not empty axes


def test_plot_of_nothing_and_of_odd_titles():
    picture = tool.plot(LabelStatistics(), "$ {x} $")
    assert picture.dtype == np.uint8 and picture.shape == (900, 1320, 3)


def test_plain_coco_has_polygons_crowds_and_no_parents(tmp_path, capsys):
    square = [10, 10, 60, 10, 60, 60, 10, 60]
    annotations = [
        {"id": 1, "image_id": 7, "segmentation": [square]},
        {"id": 2, "image_id": 7, "iscrowd": 1, "segmentation": {"size": [100, 200], "counts": [0, 20000]}},
    ]
    content = {"images": [{"id": 7, "height": 100, "width": 200, "file_name": "x.jpg"}], "annotations": annotations}
    (tmp_path / "c.json").write_text(json.dumps(content))
    found = inspect_labels(str(tmp_path / "c.json"))
    assert (found.masks, found.crowds, found.has_hierarchy) == (1, 1, False)
    assert found.coverage.tolist() == [pytest.approx(2500 / 20000, abs=0.01)]
    assert tool.main(["--labels", str(tmp_path / "c.json")]) == 0
    assert "1 crowd regions; no parent_id, so all masks are wholes" in capsys.readouterr().out


def test_invalid_masks_are_counted_and_skipped(tmp_path, capsys):
    good = FORESTS[0].to_coco(1)
    rle = good[0]["segmentation"]
    broken = [
        {"size": list(SIZE), "counts": rle["counts"] + "0"},
        {"size": list(SIZE), "counts": [5, 5]},
        {"size": [3, 3], "counts": rle["counts"]},
        [[1, 1, 2, 2]],
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [["a"] * 6],
        None,
    ]
    annotations = [*good, *({"id": 50 + k, "image_id": 1, "segmentation": s} for k, s in enumerate(broken))]
    annotations.append({**good[0], "id": 90, "parent_id": 4711})
    circle = [{**good[0], "id": 201, "image_id": 2, "parent_id": 202}, {**good[1], "id": 202, "image_id": 2}]
    circle[1]["parent_id"] = 201
    images = [image_record(1, "a.jpg", *SIZE), image_record(2, "b.jpg", *SIZE), image_record(3, "c\x1b[2J.jpg", 0, 5)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": [*annotations, *circle]}))
    assert tool.main(["--labels", str(tmp_path / "c.json")]) == 3
    said = capsys.readouterr()
    assert said.out.startswith("2 images, 6 masks\n")
    for k in range(len(broken)):
        assert f"a.jpg, annotation {50 + k}: " in said.err
    assert "names the parent 4711" in said.err and "run in a cycle" in said.err
    assert "no usable height and width" in said.err and "10 records are invalid" in said.err
    assert "\x1b" not in said.err


def test_files_without_labels_are_explained(tmp_path, capsys):
    cases = {"list.json": "[{}]", "cut.json": '{"images": [{"id": 1', "other.json": '{"a": 1}', "text.json": "hello"}
    for name, content in cases.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    messages = {
        "list.json": "is a result list",
        "cut.json": "cut off",
        "other.json": "no list 'images'",
        "text.json": "is not valid json",
        "empty": "no shard_",
        "none": "does not exist",
    }
    for name, message in messages.items():
        with pytest.raises(InputError, match=message):
            inspect_labels(str(tmp_path / name))
        assert tool.main(["--labels", str(tmp_path / name)]) == 2
        assert "sohes inspect: " in capsys.readouterr().err
    for arguments in (["--labels", "x", "--plot", "x.txt"], ["--labels", "x", "--list", "-1"], []):
        with pytest.raises(SystemExit) as stop:
            tool.main(arguments)
        assert stop.value.code == 2

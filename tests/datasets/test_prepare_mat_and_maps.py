"""MATLAB files (BSDS500, PASCAL-Part) and label maps (PartImageNet), on tiny copies of their folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

SIZE = (16, 20)


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path, format="JPEG")


def structs(records, fields):
    """A 1 x n MATLAB array of structs."""
    array = np.zeros((1, len(records)), dtype=[(name, object) for name in fields])
    for k, record in enumerate(records):
        array[0, k] = tuple(record[name] for name in fields)
    return array


@pytest.fixture
def bsds(tmp_path):
    """One image segmented by two annotators: into two halves, and into three segments, one of them a duplicate."""
    data = tmp_path / "BSR" / "BSDS500" / "data"
    photo(data / "images" / "val" / "3096.jpg")
    coarse, fine = np.ones(SIZE, np.uint16), np.ones(SIZE, np.uint16)
    coarse[:, 10:] = 2
    fine[:, 10:] = 2
    fine[8:, 10:] = 3
    people = np.empty((1, 2), object)
    for k, labels in enumerate((coarse, fine)):
        person = {"Segmentation": labels, "Boundaries": np.zeros(SIZE, np.uint8)}
        people[0, k] = structs([person], ["Segmentation", "Boundaries"])
    (data / "groundTruth" / "val").mkdir(parents=True)
    savemat(data / "groundTruth" / "val" / "3096.mat", {"groundTruth": people})
    return tmp_path


def test_bsds_merges_duplicate_segments_of_two_annotators(load_script, bsds, read_labels):
    assert load_script("prepare_bsds500").main(["--root", str(bsds)]) == 0
    labels = read_labels(bsds / "entities" / "bsds500_val.json")
    assert labels["images"][0]["id"] == 3096
    assert [a["area"] for a in labels["annotations"]] == [160, 160, 80, 80]
    assert all(a["parent_id"] == 0 for a in labels["annotations"])
    np.testing.assert_array_equal(labels["annotations"][0]["mask"], np.arange(20)[None, :].repeat(16, 0) < 10)
    np.testing.assert_array_equal(labels["annotations"][3]["mask"][8:, 10:], True)


def test_bsds_keeps_segments_below_the_duplicate_threshold(load_script, bsds, read_labels):
    assert load_script("prepare_bsds500").main(["--root", str(bsds), "--duplicate-iou", "1"]) == 0
    assert len(read_labels(bsds / "entities" / "bsds500_val.json")["annotations"]) == 5


def test_a_damaged_mat_file_is_skipped(load_script, bsds, read_labels):
    (bsds / "BSR/BSDS500/data/groundTruth/val/3096.mat").write_bytes(b"no matlab file" * 20)
    assert load_script("prepare_bsds500").main(["--root", str(bsds)]) == 3
    reason = read_labels(bsds / "entities" / "bsds500_val.json")["skipped"][0]["reason"]
    assert "3096.mat" in reason and "MATLAB" in reason


@pytest.fixture
def pascal(tmp_path):
    """A validation list of an image of a cat with two parts and a boat without parts, and one without annotations."""
    voc = tmp_path / "VOCdevkit" / "VOC2010"
    photo(voc / "JPEGImages" / "2008_000002.jpg")
    photo(voc / "JPEGImages" / "2008_000003.jpg")
    (voc / "ImageSets" / "Main").mkdir(parents=True)
    (voc / "ImageSets" / "Main" / "val.txt").write_text("2008_000003\n2008_000002\n")
    (voc / "ImageSets" / "Main" / "train.txt").write_text("2008_000007\n")

    def mask(y0, x0, y1, x1):
        array = np.zeros(SIZE, np.uint8)
        array[y0:y1, x0:x1] = 1
        return array

    parts = structs(
        [{"part_name": "head", "mask": mask(0, 0, 4, 8)}, {"part_name": "tail", "mask": mask(8, 6, 10, 8)}],
        ["part_name", "mask"],
    )
    objects = structs(
        [
            {"class": "cat", "class_ind": 8.0, "mask": mask(0, 0, 10, 8), "parts": parts},
            {"class": "boat", "class_ind": 4.0, "mask": mask(10, 10, 16, 20), "parts": np.zeros((0, 0))},
        ],
        ["class", "class_ind", "mask", "parts"],
    )
    anno = structs([{"imname": "2008_000002", "objects": objects}], ["imname", "objects"])
    (tmp_path / "pascal_part" / "Annotations_Part").mkdir(parents=True)
    savemat(tmp_path / "pascal_part" / "Annotations_Part" / "2008_000002.mat", {"anno": anno})
    return tmp_path


def test_pascal_parts_have_their_object_as_parent(load_script, pascal, read_labels):
    assert load_script("prepare_pascal_part").main(["--root", str(pascal)]) == 0
    labels = read_labels(pascal / "entities" / "pascal_part_val.json")
    assert [(i["id"], i["file_name"]) for i in labels["images"]] == [(2008000002, "2008_000002.jpg")]
    cat, head, tail, boat = labels["annotations"]
    assert [a["area"] for a in (cat, head, tail, boat)] == [80, 32, 4, 60]
    assert head["parent_id"] == tail["parent_id"] == cat["id"]
    assert cat["parent_id"] == boat["parent_id"] == 0
    assert head["mask"][:4, :8].all()


def test_pascal_reports_a_split_without_annotations(load_script, pascal, capsys):
    assert load_script("prepare_pascal_part").main(["--root", str(pascal), "--split", "train"]) == 2
    assert "roozbehm.info" in capsys.readouterr().err


@pytest.fixture
def partimagenet(tmp_path):
    """One image of a bird with a head and two feet, which share a label."""
    root = tmp_path / "PartImageNet"
    photo(root / "images" / "val" / "n01530575_1.JPEG")
    whole, parts = np.full(SIZE, 158, np.uint8), np.full(SIZE, 40, np.uint8)
    whole[2:14, 4:16] = 11
    parts[2:6, 4:8] = 13
    parts[12:14, 4:6] = parts[12:14, 10:12] = 16
    for folder, labels in (("val_whole", whole), ("val", parts)):
        (root / "annotations" / folder).mkdir(parents=True)
        Image.fromarray(labels).save(root / "annotations" / folder / "n01530575_1.png")
    return tmp_path


def test_partimagenet_parts_have_the_surrounding_whole_as_parent(load_script, partimagenet, read_labels):
    assert load_script("prepare_partimagenet").main(["--root", str(partimagenet)]) == 0
    labels = read_labels(partimagenet / "entities" / "partimagenet_val.json")
    assert labels["images"][0]["file_name"] == "n01530575_1.JPEG"
    bird, head, feet = labels["annotations"]
    assert [a["area"] for a in (bird, head, feet)] == [144, 16, 8]
    assert (bird["parent_id"], head["parent_id"], feet["parent_id"]) == (0, bird["id"], bird["id"])


def test_partimagenet_refuses_maps_of_another_kind(load_script, partimagenet, read_labels):
    # use the map of wholes as that of parts
    folder = partimagenet / "PartImageNet" / "annotations"
    (folder / "val_whole" / "n01530575_1.png").replace(folder / "val" / "n01530575_1.png")
    Image.fromarray(np.full(SIZE, 158, np.uint8)).save(folder / "val_whole" / "n01530575_1.png")
    assert load_script("prepare_partimagenet").main(["--root", str(partimagenet)]) == 3
    reason = read_labels(partimagenet / "entities" / "partimagenet_val.json")["skipped"][0]["reason"]
    assert "over 40" in reason

"""Both releases of ADE20K, on tiny copies of their folders."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

SIZE = (24, 32)
FULL = "ADE20K_2021_17_01/images/ADE/validation/urban/street"


def photo(path, size=SIZE):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def entry(number, whole, level, parts, stem="ADE_val_00000001"):
    return {
        "id": number,
        "name": "car, auto",
        "parts": {"hasparts": parts, "ispartof": whole, "part_level": level},
        "instance_mask": f"{stem}/instance_{number:03d}_{stem}.png",
    }


@pytest.fixture
def full(tmp_path, write_json):
    """An image with a tree and a car with a door with a handle; MATLAB writes a list of one number as the number."""
    folder = tmp_path / FULL
    photo(folder / "ADE_val_00000001.jpg")
    objects = [entry(0, [], 0, []), entry(2, [], 0, 5), entry(5, 2, 1, [6]), entry(6, [5], 2, [])]
    write_json(folder / "ADE_val_00000001.json", {"annotation": {"object": objects}})
    masks = {0: (0, 0, 24, 6), 2: (8, 8, 20, 28), 5: (10, 10, 16, 16), 6: (12, 12, 14, 14)}
    (folder / "ADE_val_00000001").mkdir()
    for number, (y0, x0, y1, x1) in masks.items():
        mask = np.zeros(SIZE, np.uint8)
        mask[y0:y1, x0:x1] = 255
        if number == 2:
            mask[18:20, 8:28] = 128  # occluded
        Image.fromarray(mask).save(folder / objects[0]["instance_mask"].replace("000_", f"{number:03d}_"))
    return tmp_path


def test_full_has_parts_and_subparts(load_script, full, read_labels):
    assert load_script("prepare_ade20k").main(["--root", str(full)]) == 0
    labels = read_labels(full / "entities" / "ade20k_full_val.json")
    assert [i["file_name"] for i in labels["images"]] == ["urban/street/ADE_val_00000001.jpg"]
    assert (labels["images"][0]["height"], labels["images"][0]["width"]) == SIZE
    found = {a["source_id"]: a for a in labels["annotations"]}
    assert {number: a["depth"] for number, a in found.items()} == {0: 0, 2: 0, 5: 1, 6: 2}
    assert found[5]["parent_id"] == found[2]["id"]
    assert found[6]["parent_id"] == found[5]["id"]
    assert {number: a["area"] for number, a in found.items()} == {0: 144, 2: 200, 5: 36, 6: 4}


def test_amodal_includes_occluded_pixels(load_script, full, read_labels):
    assert load_script("prepare_ade20k").main(["--root", str(full), "--amodal"]) == 0
    labels = read_labels(full / "entities" / "ade20k_full_val.json")
    assert {a["source_id"]: a["area"] for a in labels["annotations"]}[2] == 240


def test_parts_of_an_empty_object_move_to_its_parent(load_script, full, read_labels):
    door = full / FULL / "ADE_val_00000001" / "instance_005_ADE_val_00000001.png"
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(door)
    assert load_script("prepare_ade20k").main(["--root", str(full)]) == 0
    labels = read_labels(full / "entities" / "ade20k_full_val.json")
    found = {a["source_id"]: a for a in labels["annotations"]}
    assert sorted(found) == [0, 2, 6]
    assert found[6]["parent_id"] == found[2]["id"] and found[6]["depth"] == 1


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "ADE_val_00000001.jpg").unlink(), "does not exist"),
        (lambda folder: photo(folder / "ADE_val_00000001.jpg", (9, 9)), "(9, 9)"),
        (lambda folder: (folder / "ADE_val_00000001.json").write_text("{}"), "not in the 2021 form"),
        (
            lambda folder: (folder / "ADE_val_00000001" / "instance_006_ADE_val_00000001.png").unlink(),
            "the file does not exist",
        ),
    ],
)
def test_a_damaged_image_is_skipped_with_its_reason(load_script, full, read_labels, damage, reason):
    damage(full / FULL)
    assert load_script("prepare_ade20k").main(["--root", str(full)]) == 3
    labels = read_labels(full / "entities" / "ade20k_full_val.json")
    assert labels["images"] == [] and reason in labels["skipped"][0]["reason"]


def test_instance_form_reads_the_green_channel(load_script, tmp_path, read_labels, capsys):
    root = tmp_path / "ADEChallengeData2016"
    script = load_script("prepare_ade20k")
    assert script.main(["--root", str(tmp_path), "--form", "instance"]) == 2
    assert "annotations_instance.tar" in capsys.readouterr().err
    photo(root / "images" / "validation" / "ADE_val_00000012.jpg")
    labels = np.zeros((*SIZE, 3), np.uint8)
    labels[2:6, 2:6] = (20, 1, 0)
    labels[2:6, 8:10] = (20, 2, 0)  # the same class, another object
    labels[10:20, :, 0] = 30  # a class without objects
    (root / "annotations_instance" / "validation").mkdir(parents=True)
    Image.fromarray(labels).save(root / "annotations_instance" / "validation" / "ADE_val_00000012.png")
    assert script.main(["--root", str(tmp_path), "--form", "instance"]) == 0
    value = read_labels(tmp_path / "entities" / "ade20k_instance_val.json")
    assert [i["id"] for i in value["images"]] == [12]
    assert [(a["source_id"], a["area"], a["bbox"]) for a in value["annotations"]] == [
        (1, 16, [2, 2, 4, 4]),
        (2, 8, [8, 2, 2, 4]),
    ]

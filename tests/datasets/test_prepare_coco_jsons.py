"""COCO jsons: COCO, LVIS, both together, PACO, EntitySeg, the OOD release of PartImageNet."""

from __future__ import annotations

import json

import numpy as np
import pytest

SIZE = (20, 30)


def image(number, **fields):
    return {"id": number, "height": SIZE[0], "width": SIZE[1], **fields}


def square(x, y, side):
    """A polygon that covers the pixels [y, y + side) x [x, x + side)."""
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


@pytest.fixture
def coco(tmp_path, write_json):
    """COCO val2017 with three images: one with two objects and a crowd, one with one object, and one with none."""
    crowd = {"size": list(SIZE), "counts": [0, 5, 595]}  # uncompressed, as COCO writes crowds
    write_json(
        tmp_path / "coco" / "annotations" / "instances_val2017.json",
        {
            "info": {"description": "tiny \u00e9"},
            "categories": [{"id": 7, "name": "train"}, {"id": 9, "name": "boat"}],
            "images": [image(9, file_name="9.jpg"), image(4, file_name="4.jpg"), image(5, file_name="5.jpg")],
            "annotations": [
                {"id": 3, "image_id": 9, "category_id": 7, "iscrowd": 0, "area": 24.5, "bbox": [1, 2, 5, 5]}
                | {"segmentation": square(1, 2, 5)},
                {"id": 1, "image_id": 4, "category_id": 9, "iscrowd": 0, "area": 36, "bbox": [10, 10, 6, 6]}
                | {"segmentation": square(10, 10, 6)},
                {"id": 2, "image_id": 9, "category_id": 9, "iscrowd": 1, "area": 5, "bbox": [0, 0, 1, 5]}
                | {"segmentation": crowd},
                {"id": 8, "image_id": 9, "category_id": 9, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
                | {"segmentation": [[0, 0, 1, 1]]},  # two points are not a polygon
            ],
        },
    )
    for name in ("9.jpg", "4.jpg", "5.jpg"):
        path = tmp_path / "coco" / "val2017" / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def test_coco_keeps_ids_areas_boxes_and_crowds(load_script, coco, read_labels, capsys):
    assert load_script("prepare_coco").main(["--root", str(coco)]) == 0
    labels = read_labels(coco / "entities" / "coco_2017_val.json")
    assert labels["categories"] == [{"id": 1, "name": "entity", "supercategory": "entity"}]
    assert [(i["id"], i["file_name"]) for i in labels["images"]] == [(4, "4.jpg"), (5, "5.jpg"), (9, "9.jpg")]
    assert labels["images"][2]["dropped"] == 1
    found = {a["source_id"]: a for a in labels["annotations"]}
    assert sorted(found) == [1, 2, 3]
    assert {a["category_id"] for a in labels["annotations"]} == {1}
    assert all(a["parent_id"] == 0 and a["depth"] == 0 and "score" not in a for a in labels["annotations"])
    assert found[3]["area"] == 24.5 and found[3]["bbox"] == [1, 2, 5, 5] and found[3]["iscrowd"] == 0
    assert found[3]["mask"].sum() == 25 and found[3]["mask"][2:7, 1:6].all()
    assert found[2]["iscrowd"] == 1 and found[2]["mask"][:5, 0].all() and found[2]["mask"].sum() == 5
    assert "3 images, 3 masks (depth 0: 3), 1 empty or damaged" in capsys.readouterr().out


def test_coco_limit_and_output(load_script, coco, read_labels):
    output = coco / "elsewhere" / "small.json"
    assert load_script("prepare_coco").main(["--root", str(coco), "--limit", "1", "--output", str(output)]) == 0
    assert [i["id"] for i in read_labels(output)["images"]] == [4]


def test_missing_coco_files_are_reported_with_their_source(load_script, coco, capsys):
    (coco / "coco" / "val2017" / "4.jpg").unlink()
    script = load_script("prepare_coco")
    assert script.main(["--root", str(coco)]) == 2
    message = capsys.readouterr().err
    assert "1 of 3 images" in message and "'4.jpg'" in message and "val2017.zip" in message
    assert not (coco / "entities" / "coco_2017_val.json").exists()
    assert script.main(["--root", str(coco), "--no-images"]) == 0
    assert script.main(["--root", str(coco / "empty")]) == 2
    assert "annotations_trainval2017.zip" in capsys.readouterr().err


def test_a_truncated_json_is_an_error(load_script, coco, capsys):
    path = coco / "coco" / "annotations" / "instances_val2017.json"
    path.write_bytes(path.read_bytes()[:-40])
    assert load_script("prepare_coco").main(["--root", str(coco)]) == 2
    assert "cut off" in capsys.readouterr().err


@pytest.fixture
def lvis(coco, write_json):
    """COCO, and LVIS v1 val: image 9 of val2017 and image 77 of train2017, identified only by their URLs."""
    write_json(
        coco / "lvis" / "lvis_v1_val.json",
        {
            "images": [
                image(9, coco_url="http://images.cocodataset.org/val2017/000000000009.jpg"),
                image(77, coco_url="http://images.cocodataset.org/train2017/000000000077.jpg"),
            ],
            "annotations": [
                {"id": 1, "image_id": 77, "category_id": 5, "area": 9.0, "bbox": [0, 0, 3, 3]}
                | {"segmentation": square(0, 0, 3)},
                # almost the first object of COCO: IoU 25 / 30
                {"id": 2, "image_id": 9, "category_id": 6, "area": 30.0, "bbox": [1, 2, 5, 6]}
                | {"segmentation": [[1, 2, 6, 2, 6, 8, 1, 8]]},
                {"id": 3, "image_id": 9, "category_id": 6, "area": 16.0, "bbox": [20, 10, 4, 4]}
                | {"segmentation": square(20, 10, 4)},
            ],
        },
    )
    return coco


def test_lvis_reads_the_2017_folders_from_the_urls(load_script, lvis, read_labels, capsys):
    script = load_script("prepare_lvis")
    assert script.main(["--root", str(lvis)]) == 2  # the images are missing
    assert "2 of 2 images" in capsys.readouterr().err
    assert script.main(["--root", str(lvis), "--no-images"]) == 0
    labels = read_labels(lvis / "entities" / "lvis_v1_val.json")
    names = [i["file_name"] for i in labels["images"]]
    assert names == ["val2017/000000000009.jpg", "train2017/000000000077.jpg"]
    assert [(a["image_id"], a["source_id"]) for a in labels["annotations"]] == [(9, 2), (9, 3), (77, 1)]
    assert all(a["iscrowd"] == 0 for a in labels["annotations"])


def test_coco_and_lvis_objects_are_merged(load_script, lvis, read_labels):
    script = load_script("prepare_coco_lvis")
    assert script.main(["--root", str(lvis), "--no-images"]) == 0
    labels = read_labels(lvis / "entities" / "coco_lvis_val.json")
    assert [i["id"] for i in labels["images"]] == [9]
    assert [(a["area"], a["iscrowd"]) for a in labels["annotations"]] == [(30, 0), (16, 0), (5, 1)]
    assert labels["images"][0]["dropped"] == 1
    output = lvis / "strict.json"
    assert script.main(["--root", str(lvis), "--no-images", "--duplicate-iou", "0.9", "--output", str(output)]) == 0
    assert sorted(a["area"] for a in read_labels(output)["annotations"]) == [5, 16, 24.5, 30]
    assert script.main(["--root", str(lvis), "--duplicate-iou", "0"]) == 2


def test_paco_parts_have_their_object_as_parent(load_script, tmp_path, write_json, read_labels, rectangle, rle):
    part = rle(rectangle(SIZE, 12, 12, 14, 14))
    write_json(
        tmp_path / "paco" / "paco_lvis_v1_test.json",
        {
            "images": [image(2, file_name="val2017/2.jpg"), image(3, file_name="val2017/3.jpg")],
            "part_categories": [],
            "annotations": [
                # the part precedes its object; objects are polygons, parts RLEs
                {"id": 11, "obj_ann_id": 10, "image_id": 2, "category_id": 400, "area": 4, "bbox": [12, 12, 2, 2]}
                | {"segmentation": part},
                {"id": 10, "obj_ann_id": 10, "image_id": 2, "category_id": 1, "area": 36, "bbox": [10, 10, 6, 6]}
                | {"segmentation": square(10, 10, 6)},
                {"id": 12, "obj_ann_id": 12, "image_id": 2, "category_id": 1, "area": 9, "bbox": [0, 0, 3, 3]}
                | {"segmentation": square(0, 0, 3)},
                {"id": 14, "obj_ann_id": 13, "image_id": 3, "category_id": 400, "area": 4, "bbox": [12, 12, 2, 2]}
                | {"segmentation": part},
            ],
        },
    )
    script = load_script("prepare_paco")
    assert script.main(["--root", str(tmp_path), "--no-images"]) == 3
    labels = read_labels(tmp_path / "entities" / "paco_lvis_v1_test.json")
    found = {a["source_id"]: a for a in labels["annotations"]}
    assert found[11]["parent_id"] == found[10]["id"] and found[11]["depth"] == 1
    assert found[10]["parent_id"] == found[12]["parent_id"] == 0
    assert (found[10]["mask"] & found[11]["mask"]).sum() == 4
    # an image with a part without an object is skipped with the reason
    assert [i["id"] for i in labels["images"]] == [2]
    assert labels["skipped"][0]["id"] == 3 and "annotation 14 is a part of 13" in labels["skipped"][0]["reason"]


def test_entityseg_finds_images_in_folders_of_any_depth(load_script, tmp_path, write_json, read_labels, capsys):
    entity = {"image_id": 1, "category_id": 0, "iscrowd": 0, "area": 9, "bbox": [0, 0, 3, 3]}
    write_json(
        tmp_path / "entityseg" / "annotations" / "entityseg_val_lr.json",
        {
            "images": [image(1, file_name="entity_01_11580/a.jpg"), image(2, file_name="b.png")],
            "annotations": [{"id": 5, **entity, "segmentation": square(0, 0, 3)}],
            "categories": [],
        },
    )
    root = tmp_path / "entityseg" / "images_lr"
    for name in ("entity_01_11580/a.jpg", "entity_02_11598/images/b.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    script = load_script("prepare_entityseg")
    assert script.main(["--root", str(tmp_path)]) == 0
    labels = read_labels(tmp_path / "entities" / "entityseg_val.json")
    names = [i["file_name"] for i in labels["images"]]
    assert names == ["entity_01_11580/a.jpg", "entity_02_11598/images/b.png"]
    assert [a["source_id"] for a in labels["annotations"]] == [5]
    (root / "b").mkdir()
    (root / "b" / "b.png").touch()
    assert script.main(["--root", str(tmp_path)]) == 2
    assert "may be any of" in capsys.readouterr().err


def test_partimagenet_ood_has_only_parts(load_script, tmp_path, write_json, read_labels):
    name = "n01443537_445.JPEG"
    write_json(
        tmp_path / "partimagenet_ood" / "val.json",
        {
            "images": [image(0, file_name=name)],
            "annotations": [
                {"id": 0, "image_id": 0, "category_id": 0, "area": 9, "bbox": [0, 0, 3, 3], "iscrowd": 0}
                # a stray pair of points beside the outline
                | {"segmentation": [[1, 1, 2, 2], *square(0, 0, 3)]},
            ],
        },
    )
    path = tmp_path / "partimagenet_ood" / "val" / "n01443537" / name
    path.parent.mkdir(parents=True)
    path.touch()
    script = load_script("prepare_partimagenet")
    assert script.main(["--root", str(tmp_path), "--form", "ood"]) == 0
    labels = read_labels(tmp_path / "entities" / "partimagenet_ood_val.json")
    assert labels["images"][0]["file_name"] == f"n01443537/{name}"
    assert labels["annotations"][0]["id"] > 0  # the 0 of the source would mean "no match" to pycocotools
    assert labels["annotations"][0]["mask"].sum() == 9


def test_output_is_plain_json_that_pycocotools_reads(load_script, coco):
    from pycocotools.coco import COCO

    load_script("prepare_coco").main(["--root", str(coco)])
    path = coco / "entities" / "coco_2017_val.json"
    api = COCO(str(path))
    assert len(api.getAnnIds(imgIds=[9])) == 2
    assert np.all([json.loads(line.rstrip(",\n")) for line in open(path) if line.startswith('{"id"')])

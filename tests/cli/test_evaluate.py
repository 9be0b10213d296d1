"""`sohes evaluate` on two json files: metrics, matching of images, messages, exit codes."""

import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.cli.evaluate import main as evaluate_json
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

TOOLS = Path(__file__).parents[2] / "tools"


SIZE = (60, 80)
SQUARES = [(0, 0, 50, 50), (0, 0, 20, 20), (30, 60, 20, 20)]
PARENTS = [-1, 0, -1]
NAMES = {21: "val/a.jpg", 22: "val/b.jpg"}


def square(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def data_set(names, masks=3):
    """A COCO data set of forests; ``names`` maps image ids to file names."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    for image_id, name in names.items():
        content["images"].append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        forest = Forest(encode_masks([square(*s) for s in SQUARES[:masks]]), PARENTS[:masks], SIZE)
        content["annotations"] += forest.to_coco(image_id, first_id=len(content["annotations"]) + 1)
    return content


class Files:
    """Writes the two files, runs the tool, and keeps its output."""

    def __init__(self, folder, capsys):
        self.folder, self.capsys = folder, capsys
        self.truth = data_set(NAMES)

    def run(self, prediction, *arguments):
        (self.folder / "gt.json").write_text(json.dumps(self.truth))
        text = prediction if isinstance(prediction, str) else json.dumps(prediction)
        (self.folder / "pred.json").write_text(text)
        metrics = self.folder / "metrics.json"
        metrics.unlink(missing_ok=True)
        code = evaluate_json(
            ["--gt", str(self.folder / "gt.json"), "--pred", str(self.folder / "pred.json"), "--output", str(metrics)]
            + list(arguments)
        )
        self.out, self.err = self.capsys.readouterr()
        self.metrics = json.loads(metrics.read_text()) if metrics.exists() else None
        return code


@pytest.fixture
def files(tmp_path, capsys):
    return Files(tmp_path, capsys)


def test_a_result_list(files):
    results = [
        {k: a[k] for k in ("image_id", "category_id", "segmentation", "score")}
        for a in files.truth["annotations"]
        if a["image_id"] == 21
    ]
    assert files.run(results) == 0
    assert files.metrics["segm/AR@1000"] == pytest.approx(50)
    assert files.metrics["segm/AR@1"] == pytest.approx(100 / 6)
    assert files.metrics["segm/AR@1000-large"] is None
    assert not any(name.startswith(("bbox", "forest")) for name in files.metrics)
    assert "matched by image id" in files.out
    assert "6 true masks in 2 images; 3 predictions in 1 of them" in files.out
    assert files.run(results, "--iou-type", "segm", "bbox", "--max-dets", "2", "1", "--backend", "pycocotools") == 0
    assert files.metrics["bbox/AR@2"] == pytest.approx(100 / 3)
    assert "segm/AR@1000" not in files.metrics
    boxes = [{"image_id": 21, "bbox": [0, 0, 50, 50], "score": 0.5}]
    assert files.run(boxes, "--iou-type", "bbox") == 0
    assert files.metrics["bbox/AR@1000"] == pytest.approx(100 / 6)


@pytest.mark.parametrize("backend", ["pycocotools", "auto"])
def test_missing_boxes_are_those_of_the_masks(files, backend):
    results = [{k: a[k] for k in ("image_id", "segmentation", "score")} for a in files.truth["annotations"]]
    for annotation in files.truth["annotations"]:
        del annotation["bbox"]
    assert files.run(results, "--iou-type", "bbox", "--backend", backend) == 0
    assert files.metrics["bbox/AR@1000"] == 100


@pytest.mark.parametrize(
    ("names", "how"),
    [
        ({1: "val/b.jpg", 2: "val/a.jpg"}, "file name"),
        # ids that belong to other images in the ground truth
        ({22: "val/a.jpg", 21: "val/b.jpg"}, "file name"),
        ({1: "b.jpg", 2: "/data/photos/a.jpg"}, "last part of the file name"),
        ({1: "photos\\b.jpg", 2: "photos\\a.jpg"}, "last part of the file name"),
    ],
)
def test_a_coco_file_with_other_ids(files, names, how):
    # the second image's masks are mirrored, so that a wrong match changes the metrics
    files.truth["annotations"] = [a for a in files.truth["annotations"] if a["image_id"] == 21]
    labels = data_set(names)
    good = next(i for i, name in names.items() if name.endswith("a.jpg"))
    labels["annotations"] = [a for a in labels["annotations"] if a["image_id"] == good]
    for a in labels["annotations"]:
        del a["score"]
    assert files.run(labels) == 0
    assert f"matched by {how};" in files.out
    assert files.metrics["segm/AR@1000"] == pytest.approx(100)
    assert files.metrics["forest/parent_F1"] == pytest.approx(100)
    assert files.metrics["forest/depth_confusion-50"][1][1] == 1
    assert "end to end" in files.out
    assert files.run(labels, "--no-forest") == 0
    assert "forest/parent_F1" not in files.metrics


def test_ids_are_used_without_names(files):
    labels = data_set(NAMES)
    for image in labels["images"]:
        del image["file_name"]
    assert files.run(labels) == 0
    assert "matched by image id" in files.out
    assert files.metrics["segm/AR@1000"] == pytest.approx(100)
    assert files.run(data_set({21: "x.jpg", 22: "y.jpg"}), "--match", "id") == 0
    assert files.metrics["segm/AR@1000"] == pytest.approx(100)


def test_ambiguous_base_names_do_not_match(files):
    labels = data_set({1: "x/a.jpg", 2: "y/a.jpg"})
    assert files.run(labels) == 2
    assert "2 of 2 images are not in" in files.err
    assert files.run(labels, "--match", "basename") == 2
    assert "'a.jpg' occurs twice" in files.err


def test_images_that_do_not_match(files):
    labels = data_set({1: "val/a.jpg", 2: "val/c.jpg"})
    assert files.run(labels) == 2
    assert "1 of 2 images are not in" in files.err
    assert "'val/c.jpg'" in files.err
    assert "'val/a.jpg', 'val/b.jpg'" in files.err
    assert files.metrics is None
    assert files.run(labels, "--ignore-unmatched") == 0
    assert "1 predicted images are not in the ground truth" in files.out
    assert files.metrics["segm/AR@1000"] == pytest.approx(50)
    assert files.run([{"image_id": 5, "segmentation": {}, "score": 1}]) == 2
    assert "example 5;" in files.err
    assert "21, 22" in files.err


def test_uncompressed_and_polygon_predictions_and_classes(files):
    for k, annotation in enumerate(files.truth["annotations"]):
        annotation["category_id"] = k
    polygon = [[0, 0, 50, 0, 50, 50, 0, 50]]
    runs = {"size": list(SIZE), "counts": [0, *[20, 40] * 19, 20, 40 + 60 * 60]}
    results = [{"image_id": 21, "segmentation": s, "score": 0.5} for s in (polygon, runs)]
    assert files.run(results) == 0
    assert files.metrics["segm/AR@1000"] == pytest.approx(100 / 3)


def test_boxes_without_masks_are_not_evaluated_as_masks(files):
    """Neither in the ground truth nor in the predictions, with or without a parent that has no mask."""
    prediction = copy.deepcopy(files.truth)
    assert files.run(prediction) == 0
    expected = files.metrics
    box = {"image_id": 21, "iscrowd": 0, "bbox": [70, 50, 5, 5], "score": 0.99}
    for content, first_id in ((files.truth, 900), (prediction, 800)):
        content["annotations"] += [
            {**box, "id": first_id, "parent_id": 0, "segmentation": []},
            {**box, "id": first_id + 1, "parent_id": first_id},
        ]
    assert files.run(prediction) == 0 and files.metrics == expected
    assert "2 true annotations have no mask" in files.out and "2 predictions have no mask" in files.out
    assert files.run(prediction, "--iou-type", "bbox") == 0 and files.metrics["bbox/AR@1000"] == 100


def test_broken_masks_do_not_affect_boxes(files):
    prediction = copy.deepcopy(files.truth)
    for content in (files.truth, prediction):
        content["annotations"][0].update(segmentation=[[1, 2, 3]], bbox=[0, 0, 9, 9], area=81)
    assert files.run(prediction, "--iou-type", "bbox") == 0 and files.metrics["bbox/AR@1000"] == 100
    assert files.run(prediction) == 2


def test_the_output_folder_is_created(files):
    path = files.folder / "new" / "folder" / "metrics.json"
    assert files.run(files.truth, "--output", str(path)) == 0
    assert json.loads(path.read_text())["segm/AR@1000"] == 100


def broken(**changes):
    """A valid prediction with some fields changed; None removes a field."""
    good = data_set({21: "val/a.jpg"})["annotations"][0]
    good["id"] = 77
    return [{k: v for k, v in {**good, **changes}.items() if v is not None}]


RLE = broken()[0]["segmentation"]


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (broken(segmentation={"size": [60, 81], "counts": RLE["counts"]}), "size [60, 81], its image is [60, 80]"),
        (broken(segmentation={**RLE, "counts": RLE["counts"][:-2]}), "in the middle of a value"),
        (broken(segmentation={**RLE, "counts": "\u00e9" + RLE["counts"]}), "character"),
        (broken(segmentation={**RLE, "counts": [10, 20]}), "add up to 30 pixels"),
        (broken(segmentation={**RLE, "counts": None}), "annotation 77"),
        (broken(segmentation=[]), "no prediction has a segmentation"),
        (broken(segmentation=[["a", 1, 2, 3, 4, 5]]), "annotation 77"),
        (broken(segmentation="mask"), "not a COCO segmentation"),
        (broken(segmentation=None), "no prediction has a segmentation"),
        (broken(bbox=[1, 2, 3]), "x, y, width, height"),
        (broken(bbox=[1, 2, -3, 4]), "x, y, width, height"),
        (broken(score="high"), "finite number, got 'high'"),
        (broken(score=float("nan")), "finite number, got nan"),
        (broken(image_id=None), "annotation 77: it has no image_id"),
        (broken(parent_id=78), "names the parent 78"),
        (broken(parent_id=77), "cycle"),
        ([3], "annotation number 1: an annotation must be an object"),
        ({"images": []}, "neither a result list nor a COCO data set"),
        ({"annotations": []}, "no list 'images'"),
        ({"annotations": [], "images": [{"id": 21, "file_name": "val/a.jpg"}]}, "no usable 'height'"),
        ("[{", "is not valid json"),
    ],
)
def test_invalid_predictions_are_reported(files, prediction, message):
    assert files.run(prediction, "--iou-type", "segm", "bbox") == 2
    assert message in files.err
    assert str(files.folder / "pred.json") in files.err
    assert files.metrics is None


def test_another_image_size(files):
    labels = data_set(NAMES)
    labels["images"][1]["width"] = 90
    assert files.run(labels) == 2
    assert "'val/b.jpg' is 60 x 90" in files.err
    assert "it is 60 x 80" in files.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("annotations"), "no annotations to compare with"),
        (lambda t: t["annotations"][3].update(image_id=5), "annotation 4: it belongs to image 5"),
        (lambda t: t["annotations"][3]["segmentation"].update(counts="11"), "annotation 4: the runs"),
        (lambda t: t["annotations"][3].update(segmentation=[[]]), "annotation 4: a polygon must be"),
        (lambda t: t["annotations"][3].update(area=float("nan")), "annotation 4: the area must be a finite number"),
        (lambda t: t["annotations"][3].update(area=-1), "annotation 4: the area must be a finite number, not negative"),
        (lambda t: t["annotations"][3].update(iscrowd=2), "annotation 4: `iscrowd` must be 0 or 1"),
        (lambda t: t["annotations"][0].update(id=0), "annotation id 0 together with parent_id"),
        (lambda t: t["annotations"][1].update(id=1), "two annotations have the id 1"),
        (lambda t: t["images"][1].update(file_name="val/./a.jpg"), "21 and 22 are both"),
        (lambda t: t["annotations"][3].update(parent_id=1), "image 22, annotation 4: it names the parent 1"),
        (lambda t: t["images"].append(t["images"][0]), "two images have the id 21"),
        (lambda t: t.pop("images"), "not a COCO data set"),
    ],
)
def test_invalid_ground_truth_is_reported(files, change, message):
    prediction = copy.deepcopy(files.truth)
    change(files.truth)
    assert files.run(prediction) == 2
    assert message in files.err
    assert str(files.folder / "gt.json") in files.err


def test_crowds_are_not_in_the_hierarchy(files):
    """The child of a crowd region in a chain is attached to the next ancestor."""
    files.truth["annotations"] = files.truth["annotations"][:2]
    outer, inner = files.truth["annotations"]
    middle = {**outer, "id": 9, "parent_id": outer["id"], "iscrowd": 1}
    inner["parent_id"] = 9
    files.truth["annotations"].append(middle)
    assert files.run(data_set({21: "val/a.jpg"}, masks=2)) == 0
    assert files.metrics["forest/ancestor_F1"] == files.metrics["forest/mask_recall"] == 100


def test_empty_masks_are_counted_and_missing_files_are_reported(files, tmp_path):
    empty = encode_masks([np.zeros(SIZE, bool)])[0]
    result = {"image_id": 21, "segmentation": {**empty, "counts": empty["counts"].decode()}}
    assert files.run([result]) == 0
    assert "1 predicted masks are empty" in files.out
    assert files.metrics["segm/AR@1000"] == 0
    assert evaluate_json(["--gt", str(tmp_path / "none.json"), "--pred", str(tmp_path / "pred.json")]) == 2
    assert "none.json: the file does not exist" in files.capsys.readouterr().err
    for arguments in (["--max-dets", "0"], ["--iou-type", "mask"]):
        with pytest.raises(SystemExit) as error:
            files.run([result], *arguments)
        assert error.value.code == 2


def test_benchmark_prints_ratio_and_equality(capsys):
    pytest.importorskip("faster_coco_eval")
    benchmark = runpy.run_path(str(TOOLS / "benchmarks" / "benchmark_evaluation.py"))
    assert benchmark["main"](["--images", "2", "--truths", "5", "--detections", "20"]) == 0
    out = capsys.readouterr().out
    assert "speedup" in out
    assert "equal True" in out


def test_against_other_predictions(files):
    """Predictions with all three masks of each image, compared with a file that has two of them."""
    other = files.folder / "other.json"
    other.write_text(json.dumps(data_set({1: "a.jpg", 2: "b.jpg"}, masks=2)))
    assert files.run(data_set({5: "b.jpg", 6: "a.jpg"}), "--against", str(other)) == 0
    assert files.metrics["segm/AR@100/gain"] == pytest.approx(100 / 3)
    assert files.metrics["segm/AR@100/gain-low"] == pytest.approx(100 / 3)
    assert files.metrics["segm/AR@1/gain"] == pytest.approx(0)
    assert "| segm | AR@100 | 66.67 | 100.00 | +33.33 | +33.33 to +33.33 |" in " ".join(files.out.split())
    assert files.run(data_set(NAMES), "--against", str(files.folder / "none.json")) == 2
    assert "none.json" in files.err and files.metrics is None

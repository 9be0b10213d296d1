"""Predictions from a json file in Detectron2's evaluation loop: the same metrics as `sohes evaluate`."""

import json

import numpy as np
import pytest

from sohes_d2.cli.evaluate import main as evaluate_json
from sohes_d2.cli.evaluate_predictions import main as evaluate_predictions
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.data import DatasetCatalog, MetadataCatalog

SIZE = (60, 80)


def chains(rng, noise):
    """Three pairs of a whole and its part; sizes vary by up to ``noise`` pixels."""
    fixed = np.random.default_rng(1)
    masks = np.zeros((6, *SIZE), bool)
    for k in range(0, 6, 2):
        y, x = fixed.integers(0, (30, 45))
        height, width = fixed.integers(15, 30, 2) + rng.integers(0, noise + 1, 2)
        masks[k, y : y + height, x : x + width] = True
        masks[k + 1, y : y + height // 2, x : x + width // 2] = True
    return masks


def data_set(names, noise, seed):
    rng = np.random.default_rng(seed)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    for image_id, name in names.items():
        content["images"].append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        masks = encode_masks(chains(rng, noise))
        scores = rng.permutation(6) / 8 + 0.1
        forest = Forest(masks, [-1, 0, -1, 2, -1, 4], SIZE, scores=scores)
        content["annotations"] += forest.to_coco(image_id, first_id=len(content["annotations"]) + 1)
    return content


@pytest.fixture
def files(tmp_path):
    """Function that runs both tools on predictions: (metrics, those of `sohes evaluate`, saved predictions)."""
    truth = data_set({1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}, noise=0, seed=0)
    (tmp_path / "gt.json").write_text(json.dumps(truth))

    def run(prediction, *arguments):
        path = tmp_path / "pred.json"
        path.write_text(json.dumps(prediction))
        plain = tmp_path / "plain.json"
        gt = str(tmp_path / "gt.json")
        assert evaluate_json(["--gt", gt, "--pred", str(path), "--output", str(plain), *arguments]) == 0
        out = tmp_path / "out"
        code = evaluate_predictions(
            ["--dataset", f"tiny_set: {gt}, photos", "--pred", str(path), "--output-dir", str(out), *arguments]
        )
        DatasetCatalog.remove("tiny_set")
        MetadataCatalog.remove("tiny_set")
        assert code == 0
        metrics, expected = (json.loads(p.read_text()) for p in (out / "metrics.json", plain))
        expected.pop("forest/depth_confusion-50", None)
        return metrics, expected, json.loads((out / "entity_results.json").read_text())

    return run


def same(metrics, expected):
    assert list(metrics) == list(expected)
    for name, value in expected.items():
        assert metrics[name] == (value if value is None else pytest.approx(value, abs=1e-9)), name


def test_a_label_file_with_a_hierarchy(files):
    labels = data_set({7: "photos/c.jpg", 8: "photos/a.jpg"}, noise=6, seed=3)
    metrics, expected, saved = files(labels)
    same(metrics, expected)
    assert 0 < metrics["segm/AR@1000"] < 100 * 2 / 3 and metrics["forest/parent_F1"] > 0
    assert len(saved) == 12 and {a["image_id"] for a in saved} == {1, 3}
    # with ancestor scores, one of them very low
    for k, annotation in enumerate(labels["annotations"]):
        if annotation["parent_id"]:
            annotation["ancestor_scores"] = [[annotation["parent_id"], 0.9 - 0.08 * k]]
    with_scores, expected, _ = files(labels)
    same(with_scores, expected)
    assert len(with_scores) > len(metrics)


def test_a_result_list_of_masks_and_boxes(files):
    labels = data_set({2: "b.jpg", 3: "c.jpg"}, noise=6, seed=5)
    results = [{k: a[k] for k in ("image_id", "segmentation", "bbox", "score")} for a in labels["annotations"]]
    results[0]["bbox"] = [1, 2, 3, 4]  # a predicted box may differ from that of its mask
    metrics, expected, _ = files(results, "--iou-type", "segm", "bbox")
    same(metrics, expected)
    assert metrics["bbox/AR@1000"] != metrics["segm/AR@1000"] > 0
    assert not any(name.startswith("forest") for name in metrics)
    boxes = [{k: a[k] for k in ("image_id", "bbox", "score")} for a in results]
    metrics, expected, saved = files(boxes, "--iou-type", "bbox")
    same(metrics, expected)
    assert "segmentation" not in saved[0] and not any(name.startswith("segm") for name in metrics)


def test_images_that_do_not_match(files):
    labels = data_set({1: "a.jpg", 2: "unknown.jpg"}, noise=6, seed=3)
    metrics, expected, saved = files(labels, "--ignore-unmatched")
    same(metrics, expected)
    assert len(saved) == 6


def test_no_predictions_at_all(files):
    metrics, expected, saved = files([])
    same(metrics, expected)
    assert metrics["segm/AR@1000"] == 0 and saved == []


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("no_such_set", "entities_bsds500_val"),
        ("{a: 'x.json, y', b: 'x.json, y'}", "describes 2 data sets"),
        ("entities_bsds500_val", "prepare_bsds500.py"),
        ("absent_set: none.json, photos", "none.json"),
    ],
)
def test_a_wrong_data_set(tmp_path, monkeypatch, capsys, dataset, message):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert evaluate_predictions(["--dataset", dataset, "--pred", "p.json"]) == 2
    assert message in capsys.readouterr().err
    for name in {"a", "b", "absent_set"} & set(DatasetCatalog.list()):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_unmatched_predictions_are_an_error(tmp_path, capsys):
    (tmp_path / "gt.json").write_text(json.dumps(data_set({1: "a.jpg"}, noise=0, seed=0)))
    (tmp_path / "pred.json").write_text(json.dumps([{"image_id": 5, "score": 1.0, "bbox": [0, 0, 4, 4]}]))
    spec = f"tiny_set: {tmp_path}/gt.json, photos"
    assert evaluate_predictions(["--dataset", spec, "--pred", f"{tmp_path}/pred.json", "--iou-type", "bbox"]) == 2
    assert "1 of 1 images are not in" in capsys.readouterr().err
    DatasetCatalog.remove("tiny_set")
    MetadataCatalog.remove("tiny_set")

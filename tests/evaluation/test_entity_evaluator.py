"""The evaluator in Detectron2's test loop: output forms, saved file, errors, several processes."""

import json
import logging
import math

import numpy as np
import pytest
import torch

from sohes_d2.errors import InputError
from sohes_d2.evaluation.entity_evaluator import EntityEvaluator
from sohes_d2.evaluation.ground_truth import GroundTruth
from sohes_d2.evaluation.predictions import read_predictions
from sohes_d2.evaluation.scoring import evaluate
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks, rle_to_json

from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm

SIZE = (60, 80)
SQUARES = [(0, 0, 50, 50), (0, 0, 20, 20), (30, 60, 20, 20)]
PARENTS = [-1, 0, -1]


def square(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


MASKS = np.stack([square(*s) for s in SQUARES])


@pytest.fixture
def truth_file(tmp_path):
    """Two images of three masks in classes 4 and 9, with parents."""
    annotations = []
    for image_id in (11, 12):
        forest = Forest(encode_masks(MASKS), PARENTS, SIZE)
        annotations += forest.to_coco(image_id, first_id=len(annotations) + 1)
    for k, annotation in enumerate(annotations):
        annotation["category_id"] = 4 + 5 * (k % 2)
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in (11, 12)],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "a"}, {"id": 9, "name": "b"}],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return str(path)


def instances(masks=None, boxes=None, scores=(0.9, 0.8, 0.7)):
    found = Instances(SIZE)
    found.scores = torch.tensor(scores)
    if masks is not None:
        found.pred_masks = masks
    if boxes is not None:
        found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    return {"instances": found}


def run(evaluator, outputs):
    evaluator.reset()
    for image_id, output in outputs.items():
        evaluator.process([{"image_id": image_id}], [output])
    return evaluator.evaluate()


FORMS = {
    "bool tensor": lambda: torch.from_numpy(MASKS),
    "float tensor": lambda: torch.from_numpy(MASKS).float(),
    "BitMasks": lambda: BitMasks(torch.from_numpy(MASKS)),
    "RLE": lambda: encode_masks(MASKS),
    "RLE with str": lambda: [rle_to_json(m) for m in encode_masks(MASKS)],
    "arrays": lambda: list(MASKS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_masks(truth_file, form):
    results = run(EntityEvaluator(truth_file), {11: instances(FORMS[form]())})
    assert list(results) == ["segm", "bbox"]
    for task in results.values():  # of six masks, the three of the first image are found
        assert task["AR@1000"] == pytest.approx(50)
        assert task["AR@1"] == pytest.approx(100 / 6)
    flat = flatten_results_dict(results)
    assert {"segm/AR@1000", "segm/AR@1000-small", "bbox/AR@1000", "segm/AP", "bbox/AP50"} <= set(flat)


def test_boxes_with_and_without_masks(truth_file):
    boxes = [[x, y, x + w, y + h] for y, x, h, w in SQUARES]
    evaluator = EntityEvaluator(truth_file)
    results = run(evaluator, {11: instances(boxes=boxes), 12: instances(boxes=boxes)})
    assert list(results) == ["bbox"]
    assert results["bbox"]["AR@1000"] == pytest.approx(100)
    # predicted boxes are evaluated, not those of the masks
    shifted = [[x + 40, y, x2 + 40, y2] for x, y, x2, y2 in boxes]
    results = run(evaluator, {i: instances(torch.from_numpy(MASKS), shifted) for i in (11, 12)})
    assert results["segm"]["AR@1000"] == pytest.approx(100)
    assert results["bbox"]["AR@1000"] == 0


def test_forest_is_scored_and_saved(truth_file, tmp_path):
    """Saved predictions give the same metrics when they are read again."""
    forest = Forest(encode_masks(MASKS), PARENTS, SIZE, scores=[0.9, 0.8, 1 / 3])
    flat = Forest(encode_masks(MASKS[:2]), [-1, -1], SIZE, scores=[0.1, 0.2])
    probabilities = np.zeros((3, 3))
    probabilities[0, 1], probabilities[2, 1], probabilities[1, 1] = 0.9, 0.3, 1.0
    evaluator = EntityEvaluator(truth_file, str(tmp_path / "out"))
    results = run(
        evaluator, {12: {"forest": flat}, 11: {"forest": forest, "ancestor_probabilities": torch.tensor(probabilities)}}
    )
    assert results["segm"]["AR@1000"] == pytest.approx(100 * 5 / 6)
    assert results["forest"]["parent_precision"] == pytest.approx(100)
    assert results["forest"]["parent_recall"] == pytest.approx(50)
    assert results["forest"]["ancestor_AP"] == pytest.approx(50)  # the second image's pair has no score

    path = tmp_path / "out" / "entity_results.json"
    saved = json.loads(path.read_text())
    assert [a["id"] for a in saved] == [1, 2, 3, 4, 5]
    assert [a["image_id"] for a in saved] == [11, 11, 11, 12, 12]
    assert [a["parent_id"] for a in saved] == [0, 1, 0, 0, 0]
    assert saved[2]["score"] == float(np.float32(1 / 3))  # not rounded, which could create ties
    assert saved[1]["ancestor_scores"] == [[1, 0.9], [3, 0.3]]
    assert saved[0]["ancestor_scores"] == []
    assert saved[0]["bbox"] == [0, 0, 50, 50]
    truth = GroundTruth.from_file(truth_file)
    again = evaluate(truth, read_predictions(str(path), truth).annotations, str(path)).results
    for task, metrics in results.items():
        assert again[task] == pytest.approx(metrics, nan_ok=True), task


def test_ancestor_ids_of_later_images_are_shifted(truth_file, tmp_path):
    forest = Forest(encode_masks(MASKS), PARENTS, SIZE)
    output = {"forest": forest, "ancestor_probabilities": np.eye(3)[[1, 0, 2]]}
    run(EntityEvaluator(truth_file, str(tmp_path)), {11: output, 12: output})
    saved = json.loads((tmp_path / "entity_results.json").read_text())
    assert [a["parent_id"] for a in saved] == [0, 1, 0, 0, 4, 0]
    assert saved[4]["ancestor_scores"] == [[4, 1.0]]


def test_nothing_found(truth_file):
    empty = instances(torch.zeros(0, *SIZE, dtype=torch.bool), scores=())
    for outputs in ({11: empty, 12: empty}, {}):
        results = run(EntityEvaluator(truth_file), outputs)
        assert results["segm"]["AR@1000"] == results["bbox"]["AP"] == 0
        assert math.isnan(results["segm"]["AR@1000-large"])


def test_in_detectron2s_test_loop(truth_file, caplog):
    """A registered data set through inference_on_dataset and print_csv_format; one table is logged."""
    name = "test_entity_evaluator"
    register_coco_instances(name, {}, truth_file, "")

    class Model(torch.nn.Module):
        def forward(self, batch):
            return [instances(torch.from_numpy(MASKS)) for _ in batch]

    loader = [[{"image_id": 11}, {"image_id": 12}]]
    with caplog.at_level(logging.INFO):
        results = inference_on_dataset(Model(), loader, EntityEvaluator(name))
        assert results["segm"]["AR@1000"] == pytest.approx(100)
        print_csv_format(results)
    tables = [r.getMessage() for r in caplog.records if "AR@1000" in r.getMessage() and "|" in r.getMessage()]
    assert len(tables) == 1
    assert "medium" in tables[0]
    assert any("AR@1,AR@10,AR@100,AR@1000,AP,AP50,AP75" in r.getMessage() for r in caplog.records)


def test_several_processes_are_gathered_on_the_first(truth_file, monkeypatch):
    others = EntityEvaluator(truth_file)
    others.process([{"image_id": 12}], [instances(torch.from_numpy(MASKS))])
    evaluator = EntityEvaluator(truth_file)
    evaluator.process([{"image_id": 11}], [instances(torch.from_numpy(MASKS))])
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "synchronize", lambda: None)
    # predictions, and the number of images that could not be read
    monkeypatch.setattr(comm, "gather", lambda x, dst: [x, 0 if isinstance(x, int) else others._predictions])
    assert evaluator.evaluate()["segm"]["AR@1000"] == pytest.approx(100)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_a_subset_of_the_images(truth_file):
    evaluator = EntityEvaluator(truth_file)
    evaluator.process([{"image_id": 11}], [instances(torch.from_numpy(MASKS))])
    assert evaluator.evaluate([11])["segm"]["AR@1000"] == pytest.approx(100)
    assert evaluator.evaluate([12])["segm"]["AR@1000"] == 0
    with pytest.raises(InputError, match="image 13 is not in"):
        evaluator.evaluate([13])


def test_without_annotations_predictions_are_saved_only(truth_file, tmp_path):
    content = json.loads(open(truth_file).read())
    del content["annotations"]
    (tmp_path / "test.json").write_text(json.dumps(content))
    evaluator = EntityEvaluator(str(tmp_path / "test.json"), str(tmp_path))
    assert run(evaluator, {11: instances(torch.from_numpy(MASKS))}) == {}
    assert len(json.loads((tmp_path / "entity_results.json").read_text())) == 3


def test_errors_are_explained(truth_file):
    with pytest.raises(InputError, match="neither a registered data set nor a file"):
        EntityEvaluator("no_such_set")
    assert "no_such_set" not in MetadataCatalog.list()
    MetadataCatalog.get("test_set_without_json")
    with pytest.raises(InputError, match="no json_file"):
        EntityEvaluator("test_set_without_json")
    evaluator = EntityEvaluator(truth_file)
    cases = [
        (99, instances(torch.from_numpy(MASKS)), "image 99 .* is not in"),
        (11, {}, "neither 'instances' nor 'forest'"),
        (11, instances(), "neither pred_masks nor pred_boxes"),
        (11, instances(torch.zeros(3, 30, 40)), r"size \(30, 40\)"),
        (11, instances(torch.from_numpy(MASKS), scores=(0.5, float("nan"), 0.1)), "not finite"),
        (
            11,
            {**instances(torch.from_numpy(MASKS)), "ancestor_probabilities": np.zeros((2, 2))},
            r"3 masks, .* \(2, 2\)",
        ),
    ]
    for image_id, output, message in cases:
        with pytest.raises(InputError, match=message):
            evaluator.process([{"image_id": image_id}], [output])


def test_results_do_not_alias_later_runs(truth_file):
    evaluator = EntityEvaluator(truth_file)
    first = run(evaluator, {11: instances(torch.from_numpy(MASKS))})
    second = run(evaluator, {})
    assert (first["segm"]["AR@1000"], second["segm"]["AR@1000"]) == (pytest.approx(50), 0)

"""AR and AP on handmade cases, with both backends and the plain COCO API."""

import contextlib
import copy
import importlib.util
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sohes_d2.evaluation.detection_metrics import (
    AUTO,
    BACKENDS,
    FAST,
    REFERENCE,
    evaluate_detections,
    resolve_backend,
)
from sohes_d2.structures.masks import encode_masks, mask_areas, mask_boxes

HAS_FAST = importlib.util.find_spec("faster_coco_eval") is not None
backends = pytest.mark.parametrize(
    "backend", [REFERENCE, pytest.param(FAST, marks=pytest.mark.skipif(not HAS_FAST, reason="not installed"))]
)
SIZE = (120, 160)


def square(y, x, height, width):
    mask = np.zeros(SIZE, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def annotate(image_id, mask, **fields):
    (rle,) = encode_masks([mask])
    area, box = int(mask_areas([rle])[0]), mask_boxes([rle])[0].tolist()
    return {"image_id": image_id, "segmentation": rle, "area": area, "bbox": box, **fields}


IMAGES = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (3, 7, 9)]


@backends
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_numbers_by_hand(backend, iou_type):
    """Two true masks, one found exactly and one with IoU 0.7; a false detection has the highest score."""
    truths = [annotate(3, square(0, 0, 20, 20), category_id=5), annotate(3, square(40, 40, 50, 40), category_id=2)]
    detections = [
        annotate(3, square(0, 100, 20, 20), score=0.9),
        annotate(3, square(0, 0, 20, 20), score=0.8),
        annotate(3, square(40, 40, 35, 40), score=0.7),  # IoU 1400 / 2000
    ]
    metrics = evaluate_detections(IMAGES, truths, detections, iou_type, (1, 2, 1000), backend)
    assert metrics["AR@1"] == 0
    assert metrics["AR@2"] == pytest.approx(50)
    # the second is found at 5 of 10 thresholds, including 0.70
    assert metrics["AR@1000"] == pytest.approx(75)
    assert metrics["AR@1000-small"] == pytest.approx(100)
    assert metrics["AR@1000-medium"] == pytest.approx(50)
    assert math.isnan(metrics["AR@1000-large"])
    assert (metrics["AR@1-small"], metrics["AR@2-small"], metrics["AR@2-medium"]) == pytest.approx((0, 100, 0))
    # up to IoU 0.70, precision is 2/3 at all recalls: two of three detections are correct, interpolated to the left
    assert metrics["AP50"] == pytest.approx(100 * 2 / 3)
    # above 0.70, it is 1/2 up to recall 0.5, which is 51 of 101 levels
    assert metrics["AP75"] == pytest.approx(100 * 0.5 * 51 / 101)
    assert metrics["AP"] == pytest.approx((metrics["AP50"] + metrics["AP75"]) / 2)
    assert metrics["AP-small"] == pytest.approx(50)  # the false detection is small as well
    assert metrics["AP-medium"] == pytest.approx(50)


@backends
def test_edges_of_the_definition(backend):
    truth = [annotate(3, square(0, 0, 20, 20))]
    nothing_found = evaluate_detections(IMAGES, truth, [], backend=backend)
    assert nothing_found["AR@1000"] == nothing_found["AP"] == nothing_found["AR@1-small"] == 0
    assert math.isnan(nothing_found["AR@1000-large"])
    for detections in ([], [annotate(7, square(0, 0, 5, 5), score=1.0)]):
        nothing_true = evaluate_detections(IMAGES, [], detections, backend=backend)
        assert all(math.isnan(value) for value in nothing_true.values())
    crowd_only = evaluate_detections(
        IMAGES, [{**truth[0], "iscrowd": 1}], [annotate(3, square(0, 0, 5, 5), score=1.0)], backend=backend
    )
    assert math.isnan(crowd_only["AR@1000"])
    # a prediction on a crowd region is not a false positive
    both = [*truth, annotate(3, square(40, 40, 60, 60), iscrowd=1)]
    detections = [annotate(3, square(50, 50, 5, 5), score=0.9), annotate(3, square(0, 0, 20, 20), score=0.5)]
    assert evaluate_detections(IMAGES, both, detections, backend=backend)["AP"] == pytest.approx(100)


@backends
def test_equal_scores_keep_their_order(backend):
    truth = [annotate(3, square(0, 0, 20, 20))]
    right, wrong = annotate(3, square(0, 0, 20, 20), score=0.5), annotate(3, square(60, 60, 20, 20), score=0.5)
    assert evaluate_detections(IMAGES, truth, [right, wrong], backend=backend)["AR@1"] == pytest.approx(100)
    assert evaluate_detections(IMAGES, truth, [wrong, right], backend=backend)["AR@1"] == 0


@backends
def test_more_than_a_thousand_detections(backend):
    truth = [annotate(3, square(0, 0, 20, 20))]
    noise = annotate(3, square(60, 60, 8, 8), score=0.9)
    right = annotate(3, square(0, 0, 20, 20), score=0.5)
    for count, recall in ((999, 100), (1000, 0)):
        detections = [*[noise] * count, right]
        assert evaluate_detections(IMAGES, truth, detections, backend=backend)["AR@1000"] == pytest.approx(recall)


def generated(seed, scores=None, crowd=0.1, detections=60):
    """Noisy detections in three images, the last without true masks; true masks have several classes."""
    rng = np.random.default_rng(seed)
    truths, predictions = [], []
    for image_id in (3, 7, 9):
        shapes = [rng.integers([0, 0, 3, 3], [100, 140, 110, 110]) for _ in range(12)]
        if image_id != 9:
            for shape in shapes:
                truths.append(
                    annotate(image_id, square(*shape), category_id=int(rng.integers(1, 4)), id=len(truths) + 1)
                )
                truths[-1]["iscrowd"] = int(rng.random() < crowd)
        for _ in range(detections):
            shape = np.maximum(shapes[rng.integers(12)] + rng.integers(-4, 5, 4), [0, 0, 1, 1])
            score = rng.random() if scores is None else rng.choice(scores)
            predictions.append(annotate(image_id, square(*shape), score=float(score)))
    return truths, predictions


def plainly(truths, predictions, iou_type, max_dets):
    """AR@last of all and of each size, and AP, from COCOeval without this project's code."""
    gt, dt = COCO(), None
    gt.dataset = {
        "info": {},
        "images": IMAGES,
        "annotations": copy.deepcopy(truths),
        "categories": [{"id": k} for k in (1, 2, 3)],
    }
    keys = ("image_id", "score", "segmentation" if iou_type == "segm" else "bbox")
    with contextlib.redirect_stdout(io.StringIO()):
        gt.createIndex()
        dt = gt.loadRes([{**{k: p[k] for k in keys}, "category_id": 1} for p in predictions])
        evaluation = COCOeval(gt, dt, iou_type)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    recall, precision = evaluation.eval["recall"], evaluation.eval["precision"]
    values = [recall[:, 0, a, -1] for a in range(4)] + [precision[:, :, 0, 0, -1]]
    return [100 * v.mean() if (v > -1).all() else math.nan for v in values]


MANY = "many detections"
CASES = {
    "plain": {"seed": 0},
    "equal scores": {"seed": 1, "scores": [0.5]},
    "few scores": {"seed": 2, "scores": [0.1, 0.5, 0.9]},
    "much crowd": {"seed": 3, "crowd": 0.5},
    "negative scores": {"seed": 4, "scores": [-3.0, -0.5, 0.0, 4.0]},
    MANY: {"seed": 5, "detections": 1100},
}


@pytest.mark.parametrize(
    ("case", "iou_type"),
    # many detections only as boxes, which are faster
    [(case, iou_type) for case in CASES for iou_type in ("segm", "bbox") if (case, iou_type) != (MANY, "segm")],
)
def test_backends_agree_with_the_coco_api(case, iou_type):
    many = case == MANY
    truths, predictions = generated(**CASES[case])
    max_dets = (1, 10, 1000) if many else (1, 10, 40)
    reference = evaluate_detections(IMAGES, truths, predictions, iou_type, max_dets, REFERENCE)
    last = f"AR@{max_dets[-1]}"
    names = [last, f"{last}-small", f"{last}-medium", f"{last}-large", "AP"]
    if not many:
        plain = plainly(truths, predictions, iou_type, max_dets)
        assert [reference[name] for name in names] == pytest.approx(plain, abs=1e-9, nan_ok=True)
    assert 20 < reference[last] < 100  # not a trivial case
    if HAS_FAST:
        fast = evaluate_detections(IMAGES, truths, predictions, iou_type, max_dets, FAST)
        assert fast == pytest.approx(reference, abs=1e-9, nan_ok=True)


@backends
def test_equal_overlaps_are_resolved_as_by_the_coco_api(backend):
    """The COCO API processes true masks class by class and takes the last of two equal overlaps."""
    left, right = square(0, 0, 20, 20), square(0, 20, 20, 20)
    detections = [annotate(3, left | right, score=0.9), annotate(3, left, score=0.8)]
    for classes, recall_at_half in (((2, 1), 50), ((1, 2), 100)):
        truths = [annotate(3, m, category_id=c, id=c, iscrowd=0) for m, c in zip((left, right), classes)]
        expected = plainly(truths, detections, "segm", (1, 10))
        metrics = evaluate_detections(IMAGES, truths, detections, "segm", (1, 10), backend)
        assert [metrics["AR@10"], metrics["AP"]] == pytest.approx([expected[0], expected[-1]], abs=1e-9)
        assert metrics["AR@10"] == pytest.approx((recall_at_half + 9 * 50) / 10)


@backends
def test_image_ids_may_be_strings_and_records_are_unchanged(backend):
    truths, predictions = generated(6)
    before = copy.deepcopy((truths, predictions))
    expected = evaluate_detections(IMAGES, truths, predictions, backend=backend)
    assert (truths, predictions) == before
    images = [{**i, "id": f"image {i['id']}"} for i in IMAGES]
    named = [[{**a, "image_id": f"image {a['image_id']}"} for a in side] for side in (truths, predictions)]
    assert evaluate_detections(images, *named, backend=backend) == pytest.approx(expected, abs=1e-9, nan_ok=True)


def test_names_are_stable():
    names = set(evaluate_detections(IMAGES, [], [], backend=REFERENCE))
    recalls = {f"AR@{m}{s}" for m in (1, 10, 100, 1000) for s in ("", "-small", "-medium", "-large")}
    assert names == recalls | {"AP", "AP50", "AP75", "AP-small", "AP-medium", "AP-large"}


def test_choice_of_backend(monkeypatch):
    assert resolve_backend(AUTO) == (FAST if HAS_FAST else REFERENCE)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert resolve_backend(AUTO) == REFERENCE
    with pytest.raises(ValueError, match="pip install faster-coco-eval"):
        resolve_backend(FAST)
    with pytest.raises(ValueError, match=", ".join(BACKENDS)):
        resolve_backend("fastest")


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="iou_type"):
        evaluate_detections(IMAGES, [], [], "masks")
    with pytest.raises(ValueError, match="max_dets"):
        evaluate_detections(IMAGES, [], [], max_dets=(0, 10))

"""The paired bootstrap: it uses the evaluation's recall, and its intervals match known ones."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from sohes_d2.evaluation.detection_metrics import REFERENCE, evaluate_detections
from sohes_d2.evaluation.significance import recall_differences


def box(image_id, k, side=10, **fields):
    """The k-th square of an image's row of squares."""
    return {"image_id": image_id, "bbox": [100.0 * k, 0, side, side], "area": float(side * side), **fields}


def compare(truths, before, after, images=40, **options):
    records = [{"id": i, "height": 100, "width": 1000} for i in range(images)]
    return recall_differences(records, truths, before, after, "bbox", (10,), REFERENCE, **options)


def found(boxes):
    return [{**b, "score": 0.5} for b in boxes]


def test_a_gain_in_half_of_the_images_has_the_interval_of_a_binomial():
    truths = [box(i, 0) for i in range(40)]
    gain = compare(truths, [], found(truths[:20]))["AR@10"]
    assert (gain.before, gain.after) == (0, pytest.approx(50))
    low, high = binom.interval(0.95, 40, 0.5)
    assert gain.low == pytest.approx(100 * low / 40, abs=2.5)
    assert gain.high == pytest.approx(100 * high / 40, abs=2.5)


def test_images_are_drawn_with_both_predictions_and_all_entities():
    """Every image gains half of its entities, so the gain has no variance, although the images differ."""
    truths = [box(i, k) for i in range(40) for k in range(2 if i % 4 < 2 else 6)]
    first_half = [t for t in truths if t["bbox"][0] < (100 if t["image_id"] % 4 < 2 else 300)]
    before = [t for t in first_half if t["image_id"] % 2]
    after = [t for t in truths if t["image_id"] % 2 or t in first_half]
    gain = compare(truths, found(before), found(after))["AR@10"]
    assert (gain.before, gain.after) == (pytest.approx(25), pytest.approx(75))
    assert (gain.low, gain.high) == (pytest.approx(50), pytest.approx(50))


def test_recall_is_that_of_all_images_together():
    """Images have different numbers and sizes of entities, some of them crowds, or none."""
    rng = np.random.default_rng(3)
    truths = [
        box(i, k, side=rng.choice([10, 32, 50, 96, 99]), iscrowd=int(rng.random() < 0.2))
        for i in range(1, 12)
        for k in range(rng.integers(0, 6))
    ]
    before, after = (
        [{**t, "bbox": [t["bbox"][0] + rng.integers(0, 9), *t["bbox"][1:]], "score": rng.random()} for t in truths]
        for _ in range(2)
    )
    differences = compare(truths, before, after, images=12, samples=99)
    images = [{"id": i, "height": 100, "width": 1000} for i in range(12)]
    for number, predictions in (("before", before), ("after", after)):
        whole = evaluate_detections(images, truths, predictions, "bbox", (10,), REFERENCE)
        recalls = {name: value for name, value in whole.items() if name.startswith("AR@")}
        assert set(differences) == set(recalls) and len(recalls) == 4
        assert {n: getattr(d, number) for n, d in differences.items()} == pytest.approx(recalls)
    assert all(d.low < d.after - d.before < d.high for d in differences.values())


def test_missing_sizes_are_skipped_and_one_image_has_no_interval():
    truths = [box(5, 0), box(6, 0, iscrowd=1)]
    differences = compare(truths, [], found(truths))
    assert list(differences) == ["AR@10", "AR@10-small"]
    assert differences["AR@10"].after == pytest.approx(100)
    assert math.isnan(differences["AR@10"].low) and math.isnan(differences["AR@10"].high)


def test_results_are_deterministic_for_a_seed():
    truths = [box(i, 0) for i in range(40)]
    first, again, other = (
        compare(truths, found(truths[:9]), found(truths[5:30]), samples=50, seed=seed)["AR@10"] for seed in (1, 1, 2)
    )
    assert first == again and first != other

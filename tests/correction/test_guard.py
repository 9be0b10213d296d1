"""Statistics of the teacher's labels, and collapse detection."""

import pytest
import torch

from sohes_d2.correction.guard import (
    CollapseGuard,
    TeacherStatistics,
    best_overlaps,
    finite_images,
    statistics_sums,
)
from sohes_d2.errors import SOHESError


def squares(*boxes, size=32):
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (y, x, side) in zip(masks, boxes):
        mask[y : y + side, x : x + side] = True
    return masks


def logits(masks):
    return masks.float() * 8 - 4


def test_labels_are_compared_with_the_best_mask():
    labels = squares((0, 0, 16), (16, 16, 16))
    predicted = squares((0, 0, 8), (0, 0, 16), (24, 16, 8))[:, ::4, ::4]
    assert best_overlaps(labels, logits(predicted)).tolist() == [1.0, 0.25]
    assert best_overlaps(labels[:0], logits(predicted)).tolist() == []


def test_many_pixels_are_subsampled():
    labels, predicted = squares((0, 0, 256), size=512), squares((0, 0, 128), size=512)
    assert best_overlaps(labels, logits(predicted)).tolist() == [0.25]


def test_statistics_are_means_over_all_images_and_labels():
    masks = squares((0, 0, 16), (16, 16, 16))
    targets = [
        {"masks": masks, "scores": torch.tensor([0.75, 0.5])},
        {"masks": masks[:0], "scores": torch.zeros(0)},
        {"masks": masks[:1], "scores": torch.tensor([0.25])},
    ]
    students = torch.stack([logits(squares((0, 0, 16), (0, 0, 4)))] * 3)
    sums = statistics_sums(targets, students, torch.tensor([True, True, False]))
    assert sums.tolist() == [3, 3, 1.5, 2, 1]
    found = TeacherStatistics.from_sums((sums * 2).tolist())  # summed over two processes
    assert found == TeacherStatistics(labels=1.0, score=0.5, disagreement=pytest.approx(1 / 3), finite=False)
    assert TeacherStatistics.from_sums([2, 0, 0, 0, 0]) == TeacherStatistics(0.0, None, None, True)


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_detected(name, value):
    outputs = {"pred_logits": torch.zeros(3, 4, 2), "pred_masks": torch.zeros(3, 4, 8, 8)}
    assert finite_images(outputs).tolist() == [True] * 3
    outputs[name][1].view(-1)[-1] = value
    assert finite_images(outputs).tolist() == [True, False, True]


def labels(count):
    return TeacherStatistics(count, 0.5, 0.5, True)


def test_a_collapse_is_several_empty_periods_in_a_row():
    guard = CollapseGuard(period=2, min_labels=1.0, patience=2)
    good = [guard.observe(labels(n)) for n in (0, 0, 2, 0, 0.5, 1)]
    assert good == [False, False, False, True, False, False]  # means of the periods: 0, 1 and 0.75
    other = CollapseGuard(period=2, min_labels=1.0, patience=2)
    other.load_state_dict(guard.state_dict())
    assert not other.observe(labels(0))
    with pytest.raises(SOHESError, match="0.5 labels per image in the last 2 iterations.* below 1 in 2 such"):
        other.observe(labels(1))


def test_a_teacher_that_is_not_finite_stops_at_once():
    with pytest.raises(SOHESError, match="not finite"):
        CollapseGuard().observe(TeacherStatistics(5.0, 0.5, 0.5, False))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="PERIOD and PATIENCE of at least 1"):
        CollapseGuard(period=0)

"""Hierarchy metrics: a worked example and edge cases."""

import math

import numpy as np
import pytest

from sohes_d2.evaluation.forest_metrics import AncestorScores, ForestMetrics, average_precision, match_masks
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

SIZE = (20, 100)


def strip(first, last):
    """Columns first..last-1, so that IoUs are those of intervals."""
    mask = np.zeros(SIZE, bool)
    mask[:, first:last] = True
    return mask


def forest(strips, parents):
    return Forest(encode_masks([strip(*s) for s in strips]), parents, SIZE)


# house 0-60 > wall 0-40 > window 0-10; garden 60-100 > tree 60-80
TRUE_STRIPS = [(0, 60), (0, 40), (0, 10), (60, 100), (60, 80)]
TRUTH = forest(TRUE_STRIPS, [-1, 0, 1, -1, 3])

# In another order: a false mask 30-40 in the house, tree (IoU 0.55 with 60-80: 60-71), garden, house, window. The wall
# is missing, so that the parent of the window is the house; the tree is a whole.
PREDICTION = forest([(30, 40), (60, 71), (60, 100), (0, 60), (0, 10)], [3, -1, -1, -1, 3])


def compute(*images):
    metrics = ForestMetrics()
    for image in images:
        metrics.add(*image)
    return metrics.compute(), metrics.depth_confusion


def test_worked_example():
    """True ancestor pairs: house-wall, house-window, wall-window, garden-tree; parents: without house-window.

    Predicted pairs, all of them parents: house-window, house-false. At IoU 0.50 tree, garden, house and window are
    matched, at 0.60 and above the tree is not.
    """
    m, confusion = compute((TRUTH, PREDICTION))
    # end to end: only house-window is correct
    assert m["ancestor_precision-50"] == pytest.approx(100 * 1 / 2)
    assert m["ancestor_recall-50"] == pytest.approx(100 * 1 / 4)
    assert m["ancestor_F1-50"] == pytest.approx(100 * 2 / 6)
    # parents: none is correct, since the window's true parent is the wall
    assert m["parent_precision-50"] == m["parent_recall-50"] == m["parent_F1-50"] == 0
    # among matched masks: predicted house-window; true house-window and garden-tree
    assert m["ancestor_precision-matched-50"] == pytest.approx(100)
    assert m["ancestor_recall-matched-50"] == pytest.approx(100 * 1 / 2)
    assert m["ancestor_F1-matched-50"] == pytest.approx(100 * 2 / 3)
    # among matched masks, which exclude the wall, the window's parent is the house
    assert m["parent_precision-matched-50"] == pytest.approx(100)
    assert m["parent_recall-matched-50"] == pytest.approx(100 * 1 / 2)
    # the tree is matched at 0.50 and 0.55 only; above, house-window is the only pair of matched masks
    assert m["ancestor_recall-matched"] == pytest.approx(100 * (2 * 0.5 + 8 * 1) / 10)
    assert m["ancestor_recall"] == pytest.approx(100 * 1 / 4)
    assert m["mask_recall-50"] == pytest.approx(100 * 4 / 5)
    assert m["mask_recall"] == pytest.approx(100 * (2 * 4 + 8 * 3) / 50)
    # depths: house and garden are correct; window 1 instead of 2; tree 0 instead of 1
    assert m["depth_accuracy-50"] == pytest.approx(100 * 2 / 4)
    expected = np.zeros((5, 5), int)
    expected[0, 0] = 2
    expected[2, 1] = 1
    expected[1, 0] = 1
    expected[1, 4] = 1  # the missing wall
    expected[4, 1] = 1  # the false mask
    assert confusion.tolist() == expected.tolist()


def test_the_ground_truth_is_perfect_in_any_order():
    order = [4, 2, 0, 3, 1]
    m, confusion = compute((TRUTH, TRUTH.subset(order)))
    assert set(m.values()) == {100.0}
    assert np.array_equal(confusion, np.diag([2, 2, 1, 0, 0]))


def test_unmatched_masks_in_between_do_not_affect_matched_metrics():
    truth = forest([(0, 60), (0, 10)], [-1, 0])
    m, _ = compute((truth, forest([(0, 60), (0, 25), (0, 10)], [-1, 0, 1])))
    assert m["parent_F1-matched"] == m["ancestor_F1-matched"] == pytest.approx(100)
    assert m["parent_F1"] == 0  # neither of the two predicted parents is correct
    assert m["ancestor_precision"] == pytest.approx(100 / 3)
    assert m["ancestor_recall"] == pytest.approx(100)


def test_images_are_summed_before_dividing():
    flat = forest(TRUE_STRIPS, [-1] * 5)
    m, _ = compute((TRUTH, TRUTH), (TRUTH, flat))
    assert m["ancestor_precision"] == pytest.approx(100)
    assert m["ancestor_recall"] == pytest.approx(50)
    assert m["parent_F1"] == pytest.approx(100 * 2 * 3 / (3 + 6))


def test_metrics_without_pairs_are_undefined():
    empty = Forest([], [], SIZE)
    m, confusion = compute((empty, empty))
    assert all(math.isnan(value) for value in m.values())
    assert confusion.sum() == 0
    m, confusion = compute((TRUTH, empty))
    assert m["ancestor_recall"] == m["ancestor_F1"] == m["mask_recall"] == 0
    assert math.isnan(m["ancestor_precision"])
    assert math.isnan(m["ancestor_F1-matched"])
    assert confusion[:, 4].tolist() == [2, 2, 1, 0, 0]
    m, confusion = compute((empty, TRUTH))
    assert m["ancestor_precision"] == 0
    assert math.isnan(m["mask_recall"])
    assert confusion[4].tolist() == [2, 2, 1, 0, 0]


def test_larger_depths_are_counted_as_the_last():
    chain = forest([(0, 100), (0, 90), (0, 80), (0, 70), (0, 60), (0, 50)], [-1, 0, 1, 2, 3, 4])
    _, confusion = compute((chain, chain))
    assert np.array_equal(confusion, np.diag([1, 1, 1, 3, 0]))


def test_a_cycle_is_refused():
    with pytest.raises(ValueError, match="cycle"):
        compute((TRUTH, forest(TRUE_STRIPS, [1, 0, -1, -1, -1])))


def test_ap_of_ancestor_scores():
    """Scored pairs: correct (0.9), with a false mask (0.8), reversed (0.8), correct (0.3); there are 4 true pairs."""
    false, tree, garden, house, window = range(5)
    scores = AncestorScores(
        np.array([house, house, window, garden]), np.array([window, false, house, tree]), np.array([0.9, 0.8, 0.8, 0.3])
    )
    m, _ = compute((TRUTH, PREDICTION, scores))
    # recall rises by 1/4 at precision 1 and by 1/4 at precision 2/4
    assert m["ancestor_AP-50"] == pytest.approx(100 * (0.25 + 0.25 * 0.5))
    # without the false mask: 2 true pairs, precision 2/3 at the second
    assert m["ancestor_AP-matched-50"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    # from 0.60 on the tree is not matched: only the first pair is correct
    assert m["ancestor_AP"] == pytest.approx((2 * m["ancestor_AP-50"] + 8 * 25) / 10)
    twice, _ = compute((TRUTH, PREDICTION, scores), (TRUTH, PREDICTION, scores))
    assert twice == pytest.approx(m)
    none, _ = compute((TRUTH, PREDICTION, AncestorScores(*np.zeros((2, 0), int), np.zeros(0))))
    assert none["ancestor_AP"] == 0


def test_average_precision_does_not_depend_on_the_order_of_equal_scores():
    scores = np.array([0.9, 0.5, 0.5, 0.5])
    values = [average_precision(scores, np.array(r, bool), 2) for r in ([1, 1, 0, 0], [1, 0, 0, 1])]
    assert values == pytest.approx([0.5 * 1 + 0.5 * 2 / 4] * 2)
    assert math.isnan(average_precision(scores, np.zeros(4, bool), 0))


def test_matching_is_one_to_one_with_the_best_sum():
    ious = np.array([[0.9, 0.8, 0.0], [0.85, 0.3, 0.0], [0.0, 0.0, 0.5], [0.86, 0.0, 0.0]])
    # greedy matching would assign column 0 to row 0 and leave column 1 unmatched
    assert match_masks(ious, 0.5).tolist() == [1, -1, 2, 0]
    assert match_masks(ious, 0.51).tolist() == [1, -1, -1, 0]
    assert match_masks(np.zeros((2, 0)), 0.5).tolist() == [-1, -1]
    assert match_masks(np.zeros((0, 2)), 0.5).tolist() == []

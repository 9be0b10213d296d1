"""Matching of queries to labels: reference values, and edge cases."""

import logging

import numpy as np
import pytest
import torch
from helpers import matching_case
from scipy.optimize import linear_sum_assignment

from sohes_d2.modeling import point_sampling
from sohes_d2.modeling.matcher import HungarianMatcher

# Computed with the official code, see helpers/matching_case.py.
OFFICIAL_COSTS = [
    [
        [4.9001322, 6.5904770, 8.4851561],
        [7.0819592, 3.5191355, 7.6952553],
        [4.5937262, 6.3598366, 7.2154236],
        [4.5148730, 4.8354445, 8.6812515],
        [7.0599241, 5.3588705, 8.2151413],
    ],
    [
        [4.8283811, 7.0837913],
        [2.4175615, 5.9907541],
        [6.5105152, 7.4524202],
        [6.4760876, 8.6266613],
        [6.1496859, 7.4117861],
    ],
]
OFFICIAL_PAIRS = [([1, 2, 3], [1, 2, 0]), ([0, 1], [1, 0])]
OFFICIAL_PAIRS_AUX = [([0, 1, 2], [1, 2, 0]), ([0, 1], [0, 1])]


def matcher(**changes):
    return HungarianMatcher(
        **{"cost_class": 2.0, "cost_mask": 5.0, "cost_dice": 5.0, "num_points": matching_case.NUM_POINTS, **changes}
    )


def as_lists(matches):
    return [(queries.tolist(), labels.tolist()) for queries, labels in matches]


def image_costs(hungarian, outputs, targets, image):
    target = targets[image]
    points = matching_case.weyl_points(1, hungarian.num_points)
    masks = outputs["pred_masks"][image]
    return hungarian.cost_matrix(outputs["pred_logits"][image], masks, target["labels"], target["masks"], points)


@pytest.mark.parametrize("query_chunk", [1, 2, 128])
def test_costs_and_pairs_of_the_official_code(query_chunk, monkeypatch):
    monkeypatch.setattr(point_sampling, "random_points", matching_case.weyl_points)
    hungarian, outputs, targets = matcher(query_chunk=query_chunk), matching_case.outputs(), matching_case.targets()
    for image, expected in enumerate(OFFICIAL_COSTS):
        costs = image_costs(hungarian, outputs, targets, image)
        torch.testing.assert_close(costs, torch.tensor(expected), atol=1e-5, rtol=0)
    assert as_lists(hungarian(outputs, targets)) == OFFICIAL_PAIRS
    assert as_lists(hungarian(outputs["aux_outputs"][0], targets)) == OFFICIAL_PAIRS_AUX


def test_many_labels_in_chunks():
    """250 of 300 queries equal the labels in another order: all are matched, and chunks do not change costs."""
    torch.manual_seed(0)
    label_masks = torch.rand(250, 8, 8) < 0.5
    order = torch.randperm(300)
    masks = torch.randn(300, 8, 8)
    masks[order[:250]] = label_masks.float() * 12 - 6
    labels = torch.zeros(250, dtype=torch.int64)
    points = torch.rand(1, 200, 2)
    logits = torch.randn(300, 2) * 0.1
    unchunked = matcher(query_chunk=1000).cost_matrix(logits, masks, labels, label_masks, points)
    for chunk in (7, 300):
        costs = matcher(query_chunk=chunk).cost_matrix(logits, masks, labels, label_masks, points)
        torch.testing.assert_close(costs, unchunked, atol=1e-5, rtol=0)
    outputs = {"pred_logits": logits[None], "pred_masks": masks[None]}
    targets = [{"labels": labels, "masks": label_masks}]
    ((queries, matched),) = matcher(query_chunk=64, num_points=200)(outputs, targets)
    assert torch.equal(order[matched], queries)
    assert queries.tolist() == sorted(queries.tolist()) and queries.dtype == matched.dtype == torch.int64


def test_no_labels_and_more_labels_than_queries():
    torch.manual_seed(0)
    masks = torch.rand(6, 8, 8) < 0.5
    # queries 0 and 1 equal labels 4 and 2
    outputs = {"pred_logits": torch.zeros(2, 2, 2), "pred_masks": torch.stack([masks[[4, 2]] * 12.0 - 6] * 2)}
    targets = [
        {"labels": torch.zeros(0, dtype=torch.int64), "masks": masks[:0]},
        {"labels": torch.zeros(6, dtype=torch.int64), "masks": masks},
    ]
    matches = matcher()(outputs, targets)
    assert as_lists(matches) == [([], []), ([0, 1], [4, 2])]
    assert matches[0][0].dtype == torch.int64


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_predictions_are_matched_last_and_reported_once(bad, caplog):
    torch.manual_seed(0)
    label_masks = torch.rand(3, 8, 8) < 0.5
    labels = torch.zeros(3, dtype=torch.int64)
    masks = torch.cat([label_masks.float() * 12 - 6, torch.randn(1, 8, 8)])
    masks[1] = bad
    outputs = {"pred_logits": torch.zeros(1, 4, 2), "pred_masks": masks[None]}
    hungarian = matcher()
    with caplog.at_level(logging.WARNING, logger="sohes_d2.modeling.matcher"):
        for _ in range(2):
            matches = hungarian(outputs, [{"labels": labels, "masks": label_masks}])
            # query 1 is not finite, so its label gets the remaining query
            assert as_lists(matches) == [([0, 2, 3], [0, 2, 1])]
    assert len(caplog.records) == 1 and "3 of 12 matching costs are not finite" in caplog.text

    all_bad = {"pred_logits": torch.full((1, 4, 2), bad), "pred_masks": torch.full((1, 4, 8, 8), bad)}
    ((queries, matched),) = hungarian(all_bad, [{"labels": labels, "masks": label_masks}])
    assert len(queries) == 3 and sorted(matched.tolist()) == [0, 1, 2]


def test_a_non_finite_pair_costs_more_than_any_other_assignment():
    cost = matcher()._finite(np.array([[np.nan, 100.0], [100.0, 0.0]]))
    assert cost[0, 0] > 200 and np.isfinite(cost).all()
    assert linear_sum_assignment(cost)[1].tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype):
    hungarian, targets = matcher(), matching_case.targets()
    half = {name: value.to(dtype) for name, value in matching_case.layer(0.0).items()}
    single = {name: value.float() for name, value in half.items()}
    expected = image_costs(hungarian, single, targets, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        costs = image_costs(hungarian, half, targets, 0)
    assert costs.dtype == torch.float32
    torch.testing.assert_close(costs, expected, atol=1e-6, rtol=0)


def test_costs_of_large_logits():
    """Far from 0 the cross-entropy is the logit itself."""
    masks = torch.full((1, 4, 4), 90.0)
    label_masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).bool()
    points = torch.rand(1, 50, 2) * 0.5 + 0.25  # away from the border, where zero padding would lower values
    hungarian = matcher(cost_class=0.0, cost_mask=1.0, cost_dice=0.0)
    costs = hungarian.cost_matrix(torch.zeros(1, 2), masks, torch.zeros(2, dtype=torch.int64), label_masks, points)
    torch.testing.assert_close(costs, torch.tensor([[0.0, 90.0]]), atol=1e-3, rtol=0)


def test_at_least_one_cost_is_required():
    with pytest.raises(ValueError, match="all matching costs are 0"):
        matcher(cost_class=0, cost_mask=0, cost_dice=0)

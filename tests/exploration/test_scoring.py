"""The score: its formula, and higher scores for distinct regions."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.proposals import proposal

from sohes_d2.exploration.regions import STRENGTH_UNIT, border_strength
from sohes_d2.exploration.scoring import EntityScorer


def test_values_of_nodes_are_separation_times_contrast():
    nodes = SimpleNamespace(
        separation=np.array([1.0, 2.0, 9.0, -0.1]),
        surround=np.array([1.0, 2.0, 4.0, 1.0]),
        border=np.array([0.6, 0.0, 0.3, 0.5]),
        inside=np.array([0.1, 0.2, 0.3, 0.0]),
    )
    found = EntityScorer(noise=0.2, surround_power=0).tree(nodes, 2.0)
    # separations of at most 2 + lambda and at least 0
    np.testing.assert_allclose(found, [0.25 * 0.6 / 0.9, 0, 0.3 / 0.8, 0])
    found = EntityScorer(noise=0.2, surround_power=0.5).tree(nodes, 2.0)
    np.testing.assert_allclose(found, [0.25 * 0.5 * 0.6 / 0.9, 0, 0.3 / 0.8, 0])


def scored(scorer, values, agreement):
    return scorer.calibrated(scorer.raw(values, agreement))


def test_scores_are_calibrated_by_midpoint_and_slope():
    scorer = EntityScorer(floor=0.0, midpoint=0.2, slope=2.0, agreement_power=0.5)
    scores = scored(scorer, [0.2, 0.4, 0.4, 0.0, 0.5], [1.0, 1.0, 0.25, 1.0, 0.0])
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, [0.5, 0.8, 0.5, 0, 0], rtol=1e-6)
    # a floor of 0.2 leaves 0.8 for the rest, and half of it is reached at the tail
    lifted = scored(replace(scorer, floor=0.2, tail=0.2), [0.2, 0.4, 0.0], [1.0, 1.0, 1.0])
    np.testing.assert_allclose(lifted, [0.5, 0.64 + 0.2 * 2 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(scored(replace(scorer, agreement_power=0), [0.2], [0.3]), [0.5])


@pytest.mark.parametrize("slope", [0.5, 1.0, 3.0])
def test_scores_rise_with_value_and_agreement_within_bounds(slope):
    scorer = EntityScorer(slope=slope)
    grid = np.linspace(0.01, 1, 20)
    for scores in (scored(scorer, grid, np.ones(20)), scored(scorer, np.full(20, 0.3), grid)):
        assert (np.diff(scores) > 0).all()
        assert 0 <= scores.min() <= scores.max() <= 1
    assert scored(scorer, [], []).shape == (0,)


def test_the_remaining_score_decreases_with_the_overlap():
    scorer = EntityScorer(redundancy=0.4, redundancy_power=2.0)
    left = scorer.remaining(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(left, [1, 0.9, 0.6], rtol=1e-6)
    assert (EntityScorer(redundancy=0).remaining(np.array([0.0, 1.0])) == 1).all()


def test_a_refined_mask_is_scored_by_its_own_outline():
    image = np.full((60, 80, 3), 128, np.uint8)
    image[20:40, 20:50] = (220, 60, 40)
    strength = border_strength(image, (1.0,), 20.0)
    scorer = EntityScorer()
    entity = proposal((20, 20, 40, 50), separation=1.0)
    shifted = replace(entity, box=(5, 5, 25, 35))  # a corner of the entity, but mostly background
    assert scorer.proposal(entity, strength, 2.0) > 2 * scorer.proposal(shifted, strength, 2.0) > 0
    assert scorer.proposal(replace(entity, separation=0.5), strength, 2.0) == pytest.approx(
        scorer.proposal(entity, strength, 2.0) / 2
    )
    # the image border is not part of the outline
    assert scorer.proposal(proposal((0, 0, 60, 80)), strength, 0.0) == 0


def test_a_refined_mask_by_hand():
    strength = np.zeros((9, 9), np.int32)
    strength[2:7, 2:7] = STRENGTH_UNIT // 2  # over the outline, two pixels wide, of the square 3..6
    strength[4, 4] = STRENGTH_UNIT // 4  # its inner pixel
    mask = proposal((3, 3, 6, 6), separation=1.0, surround=0.5)
    contrast = 0.5 / (0.5 + 0.25 + 0.25)
    found = EntityScorer(noise=0.25, surround_power=0).proposal(mask, strength, 0.0)
    assert found == pytest.approx(0.5 * contrast)
    # the surround term is (0.5 / 2) ** 0.5
    assert EntityScorer(noise=0.25).proposal(mask, strength, 0.0) == pytest.approx(0.5 * 0.5 * contrast)

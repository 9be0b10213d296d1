"""Score calibration: linear between knots, and invalid calibrations."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.structures.score_calibration import calibrated, check_knots

KNOTS = [[0, 0], [0.5, 0.2], [1, 0.9]]


def test_scores_are_linear_between_the_knots_and_keep_their_order():
    np.testing.assert_allclose(calibrated(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), KNOTS), [0, 0.1, 0.2, 0.55, 0.9])
    scores = np.random.default_rng(0).random(1000).astype(np.float32)
    assert (calibrated(scores, KNOTS).argsort() == scores.argsort()).all()
    assert calibrated(scores, []) is scores


@pytest.mark.parametrize("knots", [[], KNOTS, ((0, 0), (1, 1)), np.array(KNOTS)])
def test_valid_calibrations_are_accepted(knots):
    check_knots(knots)


@pytest.mark.parametrize(
    "knots",
    [
        [[0, 0]],
        [[0, 0.1], [1, 0.9]],
        [[0.1, 0], [1, 0.9]],
        [[0, 0], [0.9, 0.9]],
        [[0, 0], [0.5, 0.4], [0.5, 0.6], [1, 0.9]],
        [[0, 0], [0.4, 0.5], [0.6, 0.5], [1, 0.9]],
        [[0, 0], [1, 1.1]],
        [[0, 0], [1, float("nan")]],
        [0, 1],
        [[0, 0], [1]],
        [["a", "b"], [1, 1]],
    ],
)
def test_invalid_calibrations_are_refused(knots):
    with pytest.raises(ValueError):
        check_knots(knots)

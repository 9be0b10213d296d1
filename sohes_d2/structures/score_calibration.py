"""Calibration of a model's scores without labels: to the share of masks that come back under another look.

The scores of phase 1 have this meaning (`sohes_d2.exploration.scoring`); `tools/calibrate_scores.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Knots = Sequence[Sequence[float]]


def check_knots(knots: Knots) -> None:
    """Verify that knots are a calibration.

    Args:
        knots: (raw score, share) pairs, both rising strictly, from (0, 0) to a raw score of 1; empty: no calibration.

    Raises:
        ValueError: anything else.
    """
    if not len(knots):
        return
    try:
        values = np.array(knots, np.float64)
    except (TypeError, ValueError):
        values = np.zeros(0)
    fits = values.ndim == 2 and values.shape[1] == 2 and len(values) >= 2
    if not (fits and (np.diff(values, axis=0) > 0).all() and not values[0].any() and values[-1, 0] == 1):
        raise ValueError(f"must be [raw, share] pairs that rise strictly from [0, 0] to a raw score of 1, got {knots}")
    if values[-1, 1] > 1:
        raise ValueError(f"has a share over 1: {values[-1, 1]:g}")


def calibrated(scores: np.ndarray, knots: Knots) -> np.ndarray:
    """Scores of the same shape, in [0, 1], linear between the knots; their order stays.

    Args:
        scores: raw, in [0, 1].
        knots: see `check_knots`; empty: the scores are returned as they are.
    """
    if not len(knots):
        return scores
    raw, share = np.array(knots, np.float64).T
    return np.interp(scores, raw, share)

"""Label-free calibration of a model's scores to the share of masks that are found again in a transformed photo.

Scores of phase 1 have the same meaning (`sohes_d2.exploration.scoring`); `tools/calibrate_scores.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Knots = Sequence[Sequence[float]]


def check_knots(knots: Knots) -> None:
    """Verify the knots of a calibration.

    Args:
        knots: (raw score, share) pairs, both strictly increasing, from (0, 0) to a raw score of 1; empty: none.

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
        raise ValueError(f"must be strictly increasing [raw, share] pairs from [0, 0] to a raw score of 1, got {knots}")
    if values[-1, 1] > 1:
        raise ValueError(f"has a share over 1: {values[-1, 1]:g}")


def calibrated(scores: np.ndarray, knots: Knots) -> np.ndarray:
    """Calibrate scores by linear interpolation between the knots; shape and order are preserved.

    Args:
        scores: raw scores in [0, 1].
        knots: see `check_knots`; empty: the scores are returned unchanged.
    """
    if not len(knots):
        return scores
    raw, share = np.array(knots, np.float64).T
    return np.interp(scores, raw, share)

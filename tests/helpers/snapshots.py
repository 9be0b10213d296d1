"""Partitions of a photo's leaves at merging thresholds, from the merge sequence instead of the tree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sohes_d2.exploration.merging import MergeHistory


def steps(history: MergeHistory, thetas: Sequence[float]) -> np.ndarray:
    """(L,) number of merges before the best priority first falls under each threshold."""
    lowest = np.minimum.accumulate(history.priority)
    return np.searchsorted(-lowest, -np.asarray(thetas, np.float32), side="right")


def snapshots(history: MergeHistory, thetas: Sequence[float]) -> np.ndarray:
    """(L, N) int32 region of each leaf at each threshold: the lowest leaf index of the region."""
    found = np.tile(np.arange(history.leaves, dtype=np.int32), (len(thetas), 1))
    for labels, step in zip(found, steps(history, thetas)):
        for kept, absorbed in zip(history.kept[:step], history.absorbed[:step]):
            labels[labels == absorbed] = kept
    return found

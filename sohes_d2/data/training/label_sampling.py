"""Sampling of labels where an image has more than fit: small and large ones in equal numbers."""

from __future__ import annotations

import numpy as np

# Areas of one bin differ by less than this factor: lengths by less than 2.
BIN_FACTOR = 4.0


def stratified_order(areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of masks of which any beginning is spread evenly over sizes.

    The masks are binned by the logarithm of their area, and the bins take turns, in an order that is drawn anew every
    round; a bin that is used up sits out. So the first K hold all masks of rare sizes and a random sample of the
    common ones.

    Args:
        areas: (N,) in pixels, positive.
        rng: the only source of chance.

    Returns:
        (N,) int64, a permutation.
    """
    areas = np.asarray(areas, np.float64)
    bins = np.floor(np.log(areas) / np.log(BIN_FACTOR)).astype(np.int64)
    shuffled = rng.permutation(len(areas))
    rounds = np.zeros(len(areas), np.int64)
    for value in np.unique(bins):
        members = shuffled[bins[shuffled] == value]
        rounds[members] = np.arange(len(members))
    # within a round, the order of the shuffle: random, and independent of the sizes
    return shuffled[np.argsort(rounds[shuffled], kind="stable")]

"""Region adjacency graph: shared borders, their lengths and the image gradient along them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import sparse

from .leaves import gradient_magnitude

# Border strengths are integers in units of 1 / STRENGTH_UNIT, so that their sums are exact in any order.
STRENGTH_UNIT = 1024


@dataclass(frozen=True)
class RegionGraph:
    """Neighbouring regions in compressed sparse rows, with every pair stored in the rows of both regions.

    Attributes:
        indptr: (N + 1,) int64; the neighbours of region ``a`` are ``indices[indptr[a]:indptr[a + 1]]``, ascending.
        indices: (2E,) int32.
        length: (2E,) int64, pairs of 4-neighbouring pixels along the shared border.
        strength: (2E,) int64, sum over these pairs of the border strength, in 1 / STRENGTH_UNIT.
    """

    indptr: np.ndarray
    indices: np.ndarray
    length: np.ndarray
    strength: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @classmethod
    def from_pairs(cls, count: int, a: np.ndarray, b: np.ndarray, strength: np.ndarray) -> RegionGraph:
        """The graph of ``count`` regions from P pairs of touching pixels: their regions (P,) and strengths (P,)."""
        row, col = np.concatenate([a, b]), np.concatenate([b, a])
        length = np.ones(len(row), np.int64)
        parts = []
        for values in (length, np.concatenate([strength, strength]).astype(np.int64)):
            matrix = sparse.coo_matrix((values, (row, col)), shape=(count, count)).tocsr()
            matrix.sort_indices()
            parts.append(matrix)
        lengths, strengths = parts
        return cls(lengths.indptr.astype(np.int64), lengths.indices.astype(np.int32), lengths.data, strengths.data)

    @classmethod
    def from_labels(cls, labels: np.ndarray, strength: np.ndarray) -> RegionGraph:
        """The 4-neighbours of a label map.

        Args:
            labels: (H, W) int32 from 0.
            strength: (H, W) int32 of `border_strength`; a pair of pixels has the larger of their values.
        """
        a, b, pairs = [], [], []
        for first, second in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            differ = labels[first] != labels[second]
            a.append(labels[first][differ])
            b.append(labels[second][differ])
            pairs.append(np.maximum(strength[first][differ], strength[second][differ]))
        return cls.from_pairs(int(labels.max()) + 1, np.concatenate(a), np.concatenate(b), np.concatenate(pairs))

    @classmethod
    def of_grid(cls, rows: int, cols: int) -> RegionGraph:
        """The 4-neighbours of a grid of cells, borders of length 1 and strength 0 (SOHES section 3.1)."""
        index = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
        a = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
        b = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
        return cls.from_pairs(rows * cols, a, b, np.zeros(len(a), np.int64))

    def perimeters(self) -> tuple[np.ndarray, np.ndarray]:
        """(N,) int64 border length and (N,) int64 border strength of each region, excluding the photo's edge."""
        row = np.repeat(np.arange(len(self)), np.diff(self.indptr))
        # float64 sums of integers are exact below 2^53
        totals = [np.bincount(row, weights=values, minlength=len(self)) for values in (self.length, self.strength)]
        return totals[0].astype(np.int64), totals[1].astype(np.int64)


def border_strength(image: np.ndarray, scales: Sequence[float], half: float) -> np.ndarray:
    """Border strength of each pixel: the Lab gradient over several scales, squashed as g / (g + half).

    Args:
        image: (H, W, 3) uint8 RGB.
        scales: standard deviations of the Gaussians in pixels; the gradients, multiplied by their scales (Lindeberg
            1998), are added.
        half: the gradient at which the strength is one half, in Lab units per 8 pixels.

    Returns:
        (H, W) int32 in units of 1 / STRENGTH_UNIT.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    total = np.zeros(image.shape[:2], np.float32)
    for scale in scales:
        total += np.float32(scale) * gradient_magnitude(cv2.GaussianBlur(lab, (0, 0), scale))
    return np.rint(STRENGTH_UNIT * (total / (total + np.float32(half)))).astype(np.int32)

"""Regions of a photo before merging: leaves (superpixels or cells of a grid), border strength, and adjacency graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage, sparse

LEAVES = ("superpixels", "grid")
# Border strengths are integers in units of 1 / STRENGTH_UNIT, so that their sums are exact in any order.
STRENGTH_UNIT = 1024


def superpixels(image: np.ndarray, smoothing: float = 1.0, window: int = 3) -> np.ndarray:
    """Watershed of the smoothed Lab gradient, with its local minima as markers.

    Args:
        image: (H, W, 3) uint8 RGB.
        smoothing: standard deviation in pixels of the Gaussians before and after the gradient.
        window: side in pixels of the square whose minimum is a marker; larger gives fewer superpixels.

    Returns:
        (H, W) int32 labels from 0, each a connected region.
    """
    from skimage.segmentation import watershed

    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    gradient = cv2.GaussianBlur(gradient_magnitude(cv2.GaussianBlur(lab, (0, 0), smoothing)), (0, 0), smoothing)
    markers, _ = ndimage.label(gradient == ndimage.minimum_filter(gradient, size=window))
    return watershed(gradient, markers).astype(np.int32) - 1


def grid_leaves(size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Cells of a feature grid as (H, W) int32 labels: each pixel belongs to the cell under its centre.

    Args:
        size: (H, W) in pixels.
        grid: (rows, cols) of the features.
    """
    row, col = cells_of(size, grid)
    return (row[:, None] * grid[1] + col[None]).astype(np.int32)


def cells_of(size: tuple[int, int], grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Grid row of each of H pixel rows and grid column of each of W pixel columns, (H,) and (W,) int64."""
    (height, width), (rows, cols) = size, grid
    row = ((np.arange(height) + 0.5) * rows / height).astype(np.int64)
    return row, ((np.arange(width) + 0.5) * cols / width).astype(np.int64)


def pool_features(labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Sum of the features under the pixels of each leaf.

    Args:
        labels: (H, W) int32 leaves from 0.
        features: (rows, cols, C) on a grid that tiles the same pixels.

    Returns:
        (N, C) float32.
    """
    rows, cols, channels = features.shape
    ends = labels.ravel(), grid_leaves(labels.shape, (rows, cols)).ravel()
    shape = (int(labels.max()) + 1, rows * cols)
    pixels = sparse.coo_matrix((np.ones(labels.size, np.float32), ends), shape=shape).tocsr()
    return np.ascontiguousarray(pixels @ features.reshape(-1, channels).astype(np.float32))


def gradient_magnitude(lab: np.ndarray) -> np.ndarray:
    """(H, W) float32 norm of the gradient of all channels of (H, W, 3) float32, in their units per 8 pixels."""
    total = np.zeros(lab.shape[:2], np.float32)
    for channel in cv2.split(lab):  # one at a time, to save memory on large photos
        dx, dy = cv2.Sobel(channel, cv2.CV_32F, 1, 0), cv2.Sobel(channel, cv2.CV_32F, 0, 1)
        total += dx**2 + dy**2
    return np.sqrt(total, out=total)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Nearest-neighbour resize of (h, w) labels to ``size`` (H, W)."""
    if labels.shape == tuple(size):
        return labels
    row, col = cells_of(size, labels.shape)
    return labels[row][:, col]


def consecutive(labels: np.ndarray) -> np.ndarray:
    """Renumber labels to 0..N-1 without gaps: (H, W) int32."""
    present = np.zeros(int(labels.max()) + 1, bool)
    present[labels.ravel()] = True
    return (np.cumsum(present) - 1).astype(np.int32)[labels]


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
        values = np.ones(len(row), np.int64), np.concatenate([strength, strength]).astype(np.int64)
        lengths, strengths = (sparse.coo_matrix((v, (row, col)), shape=(count, count)).tocsr() for v in values)
        lengths.sort_indices()
        strengths.sort_indices()
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

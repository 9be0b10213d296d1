"""Leaves of the merge tree: the smallest regions of a photo, superpixels or the cells of a feature grid."""

from __future__ import annotations

import cv2
import numpy as np
from scipy import ndimage, sparse

LEAVES = ("superpixels", "grid")


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
    row, col = cells_of(labels.shape, (rows, cols))
    cell = (row[:, None] * cols + col[None]).ravel()
    ones = np.ones(labels.size, np.float32)
    shape = (int(labels.max()) + 1, rows * cols)
    pixels = sparse.coo_matrix((ones, (labels.ravel(), cell)), shape=shape).tocsr()
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

"""Leaves: superpixels, grid cells, and pooled features."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sohes_d2.exploration.leaves import (
    cells_of,
    consecutive,
    gradient_magnitude,
    grid_leaves,
    pool_features,
    resize_labels,
    superpixels,
)


def two_colours() -> np.ndarray:
    image = np.full((40, 60, 3), (60, 90, 160), np.uint8)
    image[10:30, 20:50] = (220, 60, 40)
    noise = np.random.default_rng(0).integers(-4, 5, image.shape)
    return (image + noise).astype(np.uint8)


def test_superpixels_are_connected_and_cover_the_photo():
    labels = superpixels(two_colours())
    assert labels.dtype == np.int32
    assert np.array_equal(np.unique(labels), np.arange(labels.max() + 1))
    for leaf in range(labels.max() + 1):
        assert ndimage.label(labels == leaf, np.ones((3, 3)))[1] == 1


def test_superpixels_follow_the_edge():
    labels = superpixels(two_colours())
    truth = np.zeros(labels.shape, bool)
    truth[10:30, 20:50] = True
    inside = np.bincount(labels.ravel(), weights=truth.ravel()) / np.bincount(labels.ravel())
    union = (inside > 0.5)[labels]
    assert (union & truth).sum() / (union | truth).sum() > 0.95


def test_a_larger_window_or_more_smoothing_gives_fewer_superpixels():
    counts = [superpixels(two_colours(), smoothing, window).max() for smoothing, window in [(1, 3), (1, 9), (3, 3)]]
    assert counts[1] < counts[0]
    assert counts[2] < counts[0]
    assert superpixels(np.zeros((5, 7, 3), np.uint8)).max() == 0
    assert superpixels(np.zeros((1, 1, 3), np.uint8)).tolist() == [[0]]


def test_a_pixel_belongs_to_the_cell_under_its_centre():
    row, col = cells_of((5, 4), (2, 4))
    assert row.tolist() == [0, 0, 1, 1, 1]  # the centre of the middle row, 2.5 of 5, is the start of the second cell
    assert col.tolist() == [0, 1, 2, 3]
    assert grid_leaves((2, 4), (1, 2)).tolist() == [[0, 0, 1, 1]] * 2
    assert grid_leaves((4, 2), (2, 1)).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]
    assert np.unique(grid_leaves((2, 2), (4, 4))).tolist() == [5, 7, 13, 15]  # 4 of 16 cells have a pixel


def test_pooled_features_are_sums_over_pixels():
    generator = np.random.default_rng(0)
    labels = consecutive(generator.integers(0, 6, (11, 13)))
    features = generator.standard_normal((3, 4, 5)).astype(np.float32)
    pooled = pool_features(labels, features)
    expected = np.zeros((labels.max() + 1, 5))
    for y, x in np.ndindex(labels.shape):
        expected[labels[y, x]] += features[int((y + 0.5) * 3 / 11), int((x + 0.5) * 4 / 13)]
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_lengths_over_all_channels():
    lab = np.zeros((5, 6, 3), np.float32)
    lab[..., 0] = 3 * np.arange(6)
    lab[..., 1] = 4 * np.arange(5)[:, None]
    np.testing.assert_allclose(gradient_magnitude(lab)[1:-1, 1:-1], 8 * 5)


@pytest.mark.parametrize("size", [(4, 6), (8, 12), (5, 7), (2, 3), (1, 1)])
def test_labels_are_resized_by_the_nearest_pixel(size):
    labels = np.arange(24, dtype=np.int32).reshape(4, 6)
    resized = resize_labels(labels, size)
    for y, x in np.ndindex(size):
        assert resized[y, x] == labels[int((y + 0.5) * 4 / size[0]), int((x + 0.5) * 6 / size[1])]


def test_labels_without_a_gap_keep_their_regions_and_order():
    assert consecutive(np.array([[7, 2], [2, 9]])).tolist() == [[1, 0], [0, 2]]

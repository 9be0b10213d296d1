"""Leaves, pooled features, border strength and region adjacency graphs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sohes_d2.exploration.regions import (
    STRENGTH_UNIT,
    RegionGraph,
    border_strength,
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


def random_labels(seed: int, size: tuple[int, int] = (13, 17), count: int = 12) -> np.ndarray:
    """(H, W) int32 consecutive labels: the index of the nearest of some random points."""
    generator = np.random.default_rng(seed)
    points = generator.integers(0, size, (count, 2))
    y, x = np.mgrid[: size[0], : size[1]]
    return consecutive(((y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2).argmin(-1))


def pairs_of(graph: RegionGraph) -> dict[tuple[int, int], tuple[int, int]]:
    row = np.repeat(np.arange(len(graph)), np.diff(graph.indptr))
    return dict(zip(zip(row.tolist(), graph.indices.tolist()), zip(graph.length.tolist(), graph.strength.tolist())))


def brute_force(labels: np.ndarray, strength: np.ndarray) -> dict[tuple[int, int], tuple[int, int]]:
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for y, x in np.ndindex(labels.shape):
        for other in ((y + 1, x), (y, x + 1)):
            if other[0] < labels.shape[0] and other[1] < labels.shape[1] and labels[y, x] != labels[other]:
                value = int(max(strength[y, x], strength[other]))
                for pair in ((labels[y, x], labels[other]), (labels[other], labels[y, x])):
                    length, total = found.get(pair, (0, 0))
                    found[pair] = length + 1, total + value
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_borders_of_a_label_map_equal_a_walk_over_its_pixels(seed):
    labels = random_labels(seed)
    strength = np.random.default_rng(seed).integers(0, STRENGTH_UNIT, labels.shape).astype(np.int32)
    graph = RegionGraph.from_labels(labels, strength)
    expected = brute_force(labels, strength)
    assert len(graph) == labels.max() + 1
    assert pairs_of(graph) == expected
    for a in range(len(graph)):
        neighbours = graph.indices[graph.indptr[a] : graph.indptr[a + 1]]
        assert (np.diff(neighbours) > 0).all()
    lengths, strengths = graph.perimeters()
    for a in range(len(graph)):
        mine = [value for (one, _), value in expected.items() if one == a]
        assert (lengths[a], strengths[a]) == (sum(v[0] for v in mine), sum(v[1] for v in mine))


def test_a_border_without_strength_is_a_border():
    graph = RegionGraph.from_labels(np.array([[0, 1, 1], [0, 2, 2]], np.int32), np.zeros((2, 3), np.int32))
    assert pairs_of(graph) == {
        (0, 1): (1, 0), (1, 0): (1, 0), (0, 2): (1, 0), (2, 0): (1, 0), (1, 2): (2, 0), (2, 1): (2, 0)
    }  # fmt: skip


def test_a_strength_on_some_borders_leaves_the_others_in_place():
    strength = np.array([[0, 0, 0], [0, 0, 7]], np.int32)
    graph = RegionGraph.from_labels(np.array([[0, 1, 1], [0, 2, 2]], np.int32), strength)
    assert pairs_of(graph) == {
        (0, 1): (1, 0), (1, 0): (1, 0), (0, 2): (1, 0), (2, 0): (1, 0), (1, 2): (2, 7), (2, 1): (2, 7)
    }  # fmt: skip


@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 4), (3, 1), (3, 4)])
def test_a_grid_has_the_borders_of_its_cells(rows, cols):
    labels = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    expected = RegionGraph.from_labels(labels, np.zeros((rows, cols), np.int32))
    graph = RegionGraph.of_grid(rows, cols)
    assert len(graph) == rows * cols
    assert pairs_of(graph) == pairs_of(expected)
    assert set(graph.length.tolist()) <= {1}


def test_borders_are_strong_at_edges_and_nowhere_else():
    image = np.full((40, 60, 3), 90, np.uint8)
    image[:, 30:] = (220, 60, 60)
    strength = border_strength(image, (1.0, 2.0), 20.0)
    assert strength.shape == (40, 60)
    assert strength.dtype == np.int32
    assert strength[:, 29:31].min() > 0.8 * STRENGTH_UNIT
    assert strength[:, :15].max() == strength[:, 45:].max() == 0
    assert strength.max() < STRENGTH_UNIT
    assert (border_strength(np.full((9, 9, 3), 200, np.uint8), (1.0,), 20.0) == 0).all()


def test_half_is_the_gradient_of_half_strength():
    # The gradient of a grey ramp is nearly constant; where it equals ``half``, the strength is one half.
    image = np.repeat(np.arange(60, 120, dtype=np.uint8)[None, :, None], 30, axis=0).repeat(3, axis=2)
    one = border_strength(image, (2.0,), 5.0)[15, 30] / STRENGTH_UNIT
    gradient = 5 * one / (1 - one)
    assert border_strength(image, (2.0,), gradient)[15, 30] == pytest.approx(STRENGTH_UNIT / 2, abs=2)
    # gradients are multiplied by the scale and added: 2 + 4 is three times the gradient at scale 2
    twice = border_strength(image, (2.0, 4.0), gradient)[15, 30] / STRENGTH_UNIT
    assert twice == pytest.approx(3 / 4, abs=0.01)

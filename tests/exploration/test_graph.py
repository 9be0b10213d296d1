"""Region adjacency graphs and border strength."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.exploration.graph import STRENGTH_UNIT, RegionGraph, border_strength
from sohes_d2.exploration.leaves import consecutive


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

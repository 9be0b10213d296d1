"""Greedy merging: the same partitions as a plain implementation, on both paths, with and without ties."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from helpers.snapshots import snapshots, steps

from sohes_d2.exploration.merging import MergeHistory, merge_regions, numba
from sohes_d2.exploration.regions import STRENGTH_UNIT, RegionGraph

from .test_regions import random_labels

merge_plainly = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "benchmarks" / "benchmark_merging.py"))[
    "merge_plainly"
]
THETAS = [0.9, 0.7, 0.5, 0.3, 0.1, -0.5]
needs_numba = pytest.mark.skipif(numba is None, reason="numba is not installed")
PATHS = [pytest.param(True, marks=needs_numba), False]


def random_grid(rows: int, cols: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols, channels)).astype(np.float32)


def tied_grid(rows: int, cols: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (rows, cols, channels)).astype(np.float32)


def merge_grid(features: np.ndarray, use_numba: bool | None = None) -> MergeHistory:
    rows, cols, channels = features.shape
    return merge_regions(features.reshape(-1, channels), RegionGraph.of_grid(rows, cols), use_numba=use_numba)


def history_of(kept, absorbed, priority) -> MergeHistory:
    priority = np.asarray(priority, np.float32)
    ones = np.ones(len(priority), np.int64)
    ids = np.asarray(kept, np.int32), np.asarray(absorbed, np.int32)
    return MergeHistory(len(priority) + 1, *ids, priority, priority, ones, ones, 1 - priority)


def assert_same(a: MergeHistory, b: MergeHistory) -> None:
    for name in ("leaves", "kept", "absorbed", "priority", "similarity", "length", "strength"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(snapshots(a, THETAS), snapshots(b, THETAS))
    # the plain algorithm computes it from rounded similarities
    np.testing.assert_allclose(a.surround, b.surround, atol=2e-6)


@pytest.mark.parametrize("use_numba", PATHS)
@pytest.mark.parametrize("make", [random_grid, tied_grid])
@pytest.mark.parametrize("shape", [(13, 9, 5), (1, 20, 3), (20, 1, 3), (6, 6, 1), (1, 1, 4), (2, 1, 2), (9, 9, 64)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identical_to_the_plain_algorithm(use_numba, make, shape, seed):
    features = make(*shape, seed)
    untouched = features.copy()
    assert_same(merge_grid(features, use_numba), merge_plainly(features))
    np.testing.assert_array_equal(features, untouched)


def random_regions(seed: int, tied: bool):
    """(features, graph, areas) of a connected random label map with random border strengths."""
    labels = random_labels(seed, (24, 31), 40)
    generator = np.random.default_rng(100 + seed)
    strength = generator.integers(0, 3 if tied else STRENGTH_UNIT, labels.shape).astype(np.int32)
    count = labels.max() + 1
    features = generator.integers(0, 2, (count, 3)) if tied else generator.standard_normal((count, 6))
    return features.astype(np.float32), RegionGraph.from_labels(labels, strength), np.bincount(labels.ravel())


@needs_numba
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("border_weight, size_power", [(0.0, 0.0), (2.0, 0.0), (0.0, 0.3), (2.0, 0.1), (0.5, 1.0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_both_paths_give_the_same_history_of_irregular_regions(seed, tied, border_weight, size_power):
    features, graph, areas = random_regions(seed, tied)
    untouched = areas.copy()
    compiled, plain = (
        merge_regions(
            features, graph, areas=areas, border_weight=border_weight, size_power=size_power, use_numba=use_numba
        )
        for use_numba in (True, False)
    )
    assert_same(compiled, plain)
    np.testing.assert_array_equal(areas, untouched)
    # every border is removed once
    assert compiled.length.sum() == graph.length.sum() // 2
    assert compiled.strength.sum() == graph.strength.sum() // 2
    if not size_power:
        np.testing.assert_array_equal(compiled.priority, compiled.similarity)


@pytest.mark.parametrize("use_numba", PATHS)
def test_the_border_term_is_the_mean_strength_of_the_whole_shared_border(use_numba):
    # A triangle of equal features: only borders decide. 0-1: two pairs of pixels, mean 0.5; 0-2: one of 0.25; 1-2: one
    # of 0.75. First 0-2 (1 - 2 * 0.25); then 0-1 with the borders 0-1 and 1-2 together: mean (0.5 * 2 + 0.75) / 3.
    unit = STRENGTH_UNIT
    strength = np.array([unit // 4, 3 * unit // 4, unit // 4, 3 * unit // 4])
    graph = RegionGraph.from_pairs(3, np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2]), strength)
    history = merge_regions(np.ones((3, 2)), graph, border_weight=2.0, use_numba=use_numba)
    assert list(zip(history.kept.tolist(), history.absorbed.tolist())) == [(0, 2), (0, 1)]
    np.testing.assert_allclose(history.similarity, [0.5, 1 - 2 * 1.75 / 3], rtol=1e-6)
    assert history.length.tolist() == [1, 3]
    assert history.strength.tolist() == [unit // 4, unit // 4 + 3 * unit // 4 * 2]
    without = merge_regions(np.ones((3, 2)), graph, use_numba=use_numba)
    assert without.similarity.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("use_numba", PATHS)
def test_the_size_power_merges_small_regions_first(use_numba):
    # A chain of areas 4, 4, 1, 1. Cosines 0.8, 0, 0.6; harmonic means 4, 1.6, 1; p = 1:
    # 1 - 0.2 * 4 = 0.2, 1 - 1 * 1.6 = -0.6, 1 - 0.4 * 1 = 0.6: the pair with the smaller cosine merges first.
    features = np.array([[1, 0, 0], [0.8, 0, 0.6], [0, 1, 0], [0, 0.6, 0.8]])
    graph = RegionGraph.of_grid(1, 4)
    areas = np.array([4, 4, 1, 1])
    history = merge_regions(features, graph, areas=areas, size_power=1.0, use_numba=use_numba)
    assert list(zip(history.kept.tolist(), history.absorbed.tolist())) == [(2, 3), (0, 1), (0, 2)]
    # last: (1.8, 0, 0.6) with (0, 1.6, 0.8), areas 8 and 2: harmonic mean 3.2
    last = 0.48 / np.sqrt(3.6 * 3.2)
    np.testing.assert_allclose(history.similarity, [0.6, 0.8, last], rtol=1e-6)
    np.testing.assert_allclose(history.priority, [0.6, 0.2, 1 - (1 - last) * 3.2], rtol=1e-6)
    paper = merge_regions(features, graph, areas=areas, use_numba=use_numba)
    assert paper.kept.tolist()[0] == 0


@pytest.mark.parametrize("use_numba", PATHS)
def test_a_constant_image_merges_in_the_order_of_the_ids(use_numba):
    history = merge_grid(np.ones((2, 3, 4), np.float32), use_numba)
    assert history.similarity.tolist() == [1.0] * 5
    assert list(zip(history.kept.tolist(), history.absorbed.tolist())) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert steps(history, [1.0, 0.5]).tolist() == [5, 5]


@pytest.mark.parametrize("use_numba", PATHS)
def test_two_halves(use_numba):
    features = np.zeros((4, 4, 2), np.float32)
    features[:, :2, 0] = 1
    features[:, 2:, 1] = 1
    history = merge_grid(features, use_numba)
    labels = snapshots(history, [0.5, -0.5])
    assert labels[0].tolist() == [0, 0, 2, 2] * 4
    assert labels[1].tolist() == [0] * 16
    assert history.similarity[-1] == 0.0
    assert history.length[-1] == 4


def test_the_merged_feature_is_the_sum():
    # 0 and 1 merge at cos 0.8 to (1.8, 0.6), whose cosine with (0, 1) is 0.6 / sqrt(3.6)
    history = merge_grid(np.array([[[1, 0], [0.8, 0.6], [0, 1]]], np.float32))
    np.testing.assert_allclose(history.similarity, [0.8, 0.6 / np.sqrt(3.6)], rtol=1e-6)


def test_a_snapshot_is_taken_when_the_best_first_falls_below_theta():
    history = history_of([0, 0, 0, 0], [1, 2, 3, 4], [0.9, 0.4, 0.8, 0.3])
    # after the fall to 0.4, the rise to 0.8 is too late for theta 0.5
    assert steps(history, [0.95, 0.9, 0.5, 0.4, 0.35, 0.1]).tolist() == [0, 1, 1, 3, 3, 4]
    assert snapshots(history, [0.5]).tolist() == [[0, 0, 2, 3, 4]]
    assert snapshots(history, [0.5, 0.35, 0.1]).tolist() == [[0, 0, 2, 3, 4], [0, 0, 0, 0, 4], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("use_numba", PATHS)
def test_a_graph_in_two_parts_is_refused(use_numba):
    two = RegionGraph.from_pairs(4, np.array([0, 2]), np.array([1, 3]), np.zeros(2))
    with pytest.raises(ValueError, match="not connected"):
        merge_regions(np.ones((4, 2)), two, use_numba=use_numba)
    alone = RegionGraph.from_pairs(3, np.array([0]), np.array([1]), np.zeros(1))
    with pytest.raises(ValueError, match="not connected"):
        merge_regions(np.ones((3, 2)), alone, use_numba=use_numba)


@pytest.mark.parametrize("use_numba", PATHS)
def test_bad_input_is_refused(use_numba):
    graph = RegionGraph.of_grid(1, 3)
    for shape in [(3,), (2, 4), (3, 0), (1, 3, 2)]:
        with pytest.raises(ValueError, match=r"features must be \(N, C\) for the graph's 3 regions"):
            merge_regions(np.ones(shape), graph, use_numba=use_numba)
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="NaN or infinity"):
            merge_regions(np.full((3, 2), bad), graph, use_numba=use_numba)
    with pytest.raises(ValueError, match="needs the areas"):
        merge_regions(np.ones((3, 2)), graph, size_power=0.1, use_numba=use_numba)
    # an all-zero feature has similarity 0 and is not an error
    assert merge_regions(np.zeros((3, 2)), graph, use_numba=use_numba).similarity.tolist() == [0.0, 0.0]

"""Greedy merging: the same partitions as the plain algorithm, on both paths, with and without ties."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.exploration.merging import MergeHistory, merge_regions, numba

merge_plainly = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "benchmark_merging.py"))["merge_plainly"]
THETAS = [0.9, 0.7, 0.5, 0.3, 0.1, -0.5]
PATHS = [pytest.param(True, marks=pytest.mark.skipif(numba is None, reason="numba is not installed")), False]


def random_grid(rows: int, cols: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, cols, channels)).astype(np.float32)


def tied_grid(rows: int, cols: int, channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (rows, cols, channels)).astype(np.float32)


def assert_same(a: MergeHistory, b: MergeHistory) -> None:
    for name in ("kept", "absorbed", "similarity"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.labels(THETAS), b.labels(THETAS))


@pytest.mark.parametrize("use_numba", PATHS)
@pytest.mark.parametrize("make", [random_grid, tied_grid])
@pytest.mark.parametrize("shape", [(13, 9, 5), (1, 20, 3), (20, 1, 3), (6, 6, 1), (1, 1, 4), (2, 1, 2), (9, 9, 64)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_identical_to_the_plain_algorithm(use_numba, make, shape, seed):
    features = make(*shape, seed)
    untouched = features.copy()
    assert_same(merge_regions(features, use_numba), merge_plainly(features))
    np.testing.assert_array_equal(features, untouched)


@pytest.mark.parametrize("use_numba", PATHS)
def test_a_constant_image_merges_in_the_order_of_the_ids(use_numba):
    history = merge_regions(np.ones((2, 3, 4), np.float32), use_numba)
    assert history.similarity.tolist() == [1.0] * 5
    assert list(zip(history.kept.tolist(), history.absorbed.tolist())) == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert history.region_counts([1.0, 0.5]).tolist() == [1, 1]


@pytest.mark.parametrize("use_numba", PATHS)
def test_two_halves(use_numba):
    features = np.zeros((4, 4, 2), np.float32)
    features[:, :2, 0] = 1
    features[:, 2:, 1] = 1
    history = merge_regions(features, use_numba)
    labels = history.labels([0.5, -0.5])
    assert labels[0].tolist() == [[0, 0, 2, 2]] * 4
    assert labels[1].tolist() == [[0, 0, 0, 0]] * 4
    assert history.similarity[-1] == 0.0


def test_the_merged_feature_is_the_sum():
    # 0 and 1 merge at cos 0.8 to (1.8, 0.6), whose cosine with (0, 1) is 0.6 / sqrt(3.6)
    features = np.array([[[1, 0], [0.8, 0.6], [0, 1]]], np.float32)
    history = merge_regions(features)
    np.testing.assert_allclose(history.similarity, [0.8, 0.6 / np.sqrt(3.6)], rtol=1e-6)


def test_a_snapshot_is_taken_when_the_best_first_falls_under_theta():
    history = MergeHistory(
        (1, 5),
        np.array([0, 0, 0, 0], np.int32),
        np.array([1, 2, 3, 4], np.int32),
        np.array([0.9, 0.4, 0.8, 0.3], np.float32),
    )
    # after the fall to 0.4, the rise to 0.8 is too late for theta 0.5
    assert history.steps([0.95, 0.9, 0.5, 0.4, 0.35, 0.1]).tolist() == [0, 1, 1, 3, 3, 4]
    assert history.region_counts([0.5, 0.1]).tolist() == [4, 1]
    assert history.labels([0.5]).tolist() == [[[0, 0, 2, 3, 4]]]


def test_distinct_regions_carry_their_life():
    history = MergeHistory(
        (1, 4),
        np.array([0, 2, 0], np.int32),
        np.array([1, 3, 2], np.int32),
        np.array([0.9, 0.6, 0.2], np.float32),
    )
    regions = history.regions([0.95, 0.7, 0.5, 0.3, 0.1])
    lives = [[round(value, 4) for value in values.tolist()] for values in (regions.birth, regions.death)]
    rows = list(zip(regions.ids.tolist(), regions.first.tolist(), regions.last.tolist(), *lives))
    assert rows == [
        (0, 0, 0, 1.0, 0.9),
        (1, 0, 0, 1.0, 0.9),
        (2, 0, 1, 1.0, 0.6),
        (3, 0, 1, 1.0, 0.6),
        (0, 1, 3, 0.9, 0.2),
        (2, 2, 3, 0.6, 0.2),
        (0, 4, 4, 0.2, -1.0),
    ]
    assert len(regions) == 7
    # a region that lives between two thresholds only is in no snapshot, and not listed
    assert len(history.regions([0.95, 0.1])) == 5


def test_regions_of_a_random_run_tile_every_snapshot():
    history = merge_regions(random_grid(8, 9, 4))
    regions = history.regions(THETAS)
    for level, labels in enumerate(regions.labels):
        standing = (regions.first <= level) & (level <= regions.last)
        assert sorted(regions.ids[standing]) == np.unique(labels).tolist()
    assert (regions.birth >= regions.death).all()


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="grid"):
        merge_regions(np.ones((3, 4)))
    with pytest.raises(ValueError, match="NaN"):
        merge_regions(np.full((2, 2, 2), np.nan))
    # an all-zero feature is similar to nothing, but is no error
    assert merge_regions(np.zeros((1, 3, 2))).similarity.tolist() == [0.0, 0.0]

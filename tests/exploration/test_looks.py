"""Looks: the merge trees of a photo, including the clustering of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.snapshots import snapshots

from sohes_d2.exploration.looks import Looks, grid_parts, grid_tree
from sohes_d2.exploration.merging import merge_regions
from sohes_d2.exploration.regions import RegionGraph, border_strength, grid_leaves

from .test_merging import merge_plainly

PAPER = {"leaves": "grid", "scales": (1.0,), "border_weights": (0.0,), "size_powers": (0.0,)}
THETAS = [0.8, 0.5, 0.2, 0.0, -0.2]


def photo(size: tuple[int, int] = (30, 42), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def standing(tree, thetas) -> list[set[bytes]]:
    """Per threshold, the masks of the nodes that are first in its snapshot, as bytes."""
    found = [set() for _ in thetas]
    for node, level in enumerate(tree.levels(thetas)):
        if level >= 0:
            leaves = tree.order[tree.first[node] : tree.last[node]]
            found[level].add(np.isin(tree.labels, leaves).tobytes())
    return found


@pytest.mark.parametrize("size", [(30, 42), (31, 40), (5, 7)])
def test_a_grid_look_without_borders_gives_the_partitions_of_the_paper(size):
    features = np.random.default_rng(1).standard_normal((5, 7, 4)).astype(np.float32)
    (tree,) = Looks(**PAPER).trees(photo(size), features, np.zeros(size, np.int32))
    cells = grid_leaves(size, (5, 7))
    seen: set[bytes] = set()
    expected = []
    for labels in snapshots(merge_plainly(features), THETAS):
        regions = {(labels == name)[cells].tobytes() for name in np.unique(labels)}
        expected.append(regions - seen)
        seen |= regions
    assert standing(tree, THETAS) == expected
    assert standing(grid_tree(features, size), THETAS) == expected


def test_a_grid_finer_than_the_pixels_is_merged_by_its_cells():
    features = np.random.default_rng(1).standard_normal((8, 8, 4)).astype(np.float32)
    labels, graph, leaves, areas = grid_parts(features, np.full((5, 5), 9, np.int32))
    assert (len(graph), len(leaves), len(areas), areas.sum()) == (64, 64, 64, 25)
    np.testing.assert_array_equal(graph.indices, RegionGraph.of_grid(8, 8).indices)
    assert merge_regions(leaves, graph, areas=areas).leaves == 64


def test_looks_differ_in_their_weights_and_scales_only():
    image = np.full((40, 48, 3), (60, 90, 160), np.uint8)
    image[8:32, 10:40] = (220, 60, 40)
    image = (image + np.random.default_rng(0).integers(-9, 10, image.shape)).astype(np.uint8)
    features = np.random.default_rng(1).standard_normal((10, 12, 4)).astype(np.float32)
    looks = Looks(scales=(1.0, 1.0, 0.5), border_weights=(0.0, 2.0, 2.0), size_powers=(0.0, 0.3, 0.0))
    strength = border_strength(image, looks.border_scales, looks.border_half)
    first, second, third = looks.trees(image, features, strength)
    assert first.labels is second.labels
    assert not np.array_equal(first.separation, second.separation)
    assert third.leaves < first.leaves / 2
    assert first.labels.shape == third.labels.shape == (40, 48)
    single = Looks(scales=(0.5,), border_weights=(2.0,), size_powers=(0.0,))
    (alone,) = single.trees(image, features, strength)
    for name, value in vars(third).items():
        assert np.array_equal(value, getattr(alone, name)), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leaves": "hexagons"}, "LEAVES.NAME 'hexagons' is not one of superpixels, grid"),
        ({"scales": (1.0, 0.5)}, "as many SCALES .* got 2, 3 and 3"),
        ({"scales": (), "border_weights": (), "size_powers": ()}, "at least one"),
        ({"scales": (1.0, 0.0, 1.0)}, r"SCALES must be in \(0, 1\]"),
        ({"scales": (1.0, 1.5, 1.0)}, r"SCALES must be in \(0, 1\]"),
        ({"border_weights": (1.0, -1.0, 1.0)}, "must not be negative"),
        ({"size_powers": (0.0, -0.1, 0.0)}, "must not be negative"),
        ({"leaves": "grid"}, "must be equal"),
    ],
)
def test_invalid_looks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Looks(**options)

"""The merge tree: its arrays agree with the nodes' masks."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.snapshots import snapshots

from sohes_d2.exploration import merge_tree
from sohes_d2.exploration.looks import grid_tree
from sohes_d2.exploration.merge_tree import MergeTree
from sohes_d2.exploration.merging import MergeHistory, merge_regions, numba
from sohes_d2.exploration.regions import STRENGTH_UNIT, RegionGraph
from sohes_d2.structures.masks import decode_masks

from .test_regions import random_labels

THETAS = [0.9, 0.5, 0.2, 0.0, -0.3, -0.6, -0.9, -1.2]


def random_tree(seed: int, size: tuple[int, int] = (13, 17), count: int = 12, **options):
    """(tree, history, graph, strength) over random regions with random features and strengths."""
    generator = np.random.default_rng(seed)
    labels = random_labels(seed, size, count)
    strength = generator.integers(0, STRENGTH_UNIT, size).astype(np.int32)
    graph = RegionGraph.from_labels(labels, strength)
    features = generator.standard_normal((len(graph), 4)).astype(np.float32)
    history = merge_regions(features, graph, areas=np.bincount(labels.ravel()), **options)
    return MergeTree(labels, graph, history, strength), history, graph, strength


def members_of(history: MergeHistory) -> list[set[int]]:
    """The leaves of each node, by following the merges."""
    standing = {leaf: {leaf} for leaf in range(history.leaves)}
    nodes = [{leaf} for leaf in range(history.leaves)]
    for kept, absorbed in zip(history.kept.tolist(), history.absorbed.tolist()):
        standing[kept] = standing[kept] | standing.pop(absorbed)
        nodes.append(standing[kept])
    return nodes


def masks_of(tree: MergeTree, history: MergeHistory) -> np.ndarray:
    return np.stack([np.isin(tree.labels, list(members)) for members in members_of(history)])


def outline(mask: np.ndarray, strength: np.ndarray) -> list[int]:
    """Strengths of the pixel pairs across the outline of a mask."""
    values = []
    for one, two in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        differ = mask[one] != mask[two]
        values += np.maximum(strength[one], strength[two])[differ].tolist()
    return values


@pytest.mark.parametrize("options", [{}, {"border_weight": 2.0}, {"border_weight": 1.0, "size_power": 0.3}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_attributes_of_nodes_equal_those_of_their_masks(seed, options):
    tree, history, _, strength = random_tree(seed, **options)
    masks = masks_of(tree, history)
    assert len(tree) == len(masks) == 2 * tree.leaves - 1
    for node, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        assert tree.area[node] == mask.sum()
        assert tree.box[node].tolist() == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
        y0, x0, y1, x1 = tree.box[node]
        assert np.array_equal(tree.mask(node), mask[y0:y1, x0:x1])
        border = outline(mask, strength)
        assert tree.border[node] == pytest.approx(np.mean(border) / STRENGTH_UNIT if border else 0)
        assert tree.inside[node] == pytest.approx(strength[mask].mean() / STRENGTH_UNIT)
        if tree.parents[node] >= 0:
            assert (masks[tree.parents[node]] & mask).sum() == mask.sum()
    assert tree.area[-1] == tree.labels.size


@pytest.mark.parametrize("seed", [0, 1])
def test_parents_intervals_and_lifetimes_follow_the_merges(seed):
    tree, history, *_ = random_tree(seed, size_power=0.3)
    members = members_of(history)
    lowest = np.minimum.accumulate(history.priority)
    for node, leaves in enumerate(members):
        assert set(tree.order[tree.first[node] : tree.last[node]].tolist()) == leaves
        above = min((k for k in range(len(members)) if leaves < members[k]), default=-1)
        assert tree.parents[node] == above
        merge = above - tree.leaves
        assert tree.birth[node] == (1 if node < tree.leaves else lowest[node - tree.leaves])
        if above >= 0:
            assert tree.death[node] == lowest[merge]
            assert tree.separation[node] == pytest.approx(1 - history.similarity[merge])
    assert (tree.birth >= tree.death).all()
    assert tree.death[-1] == min(-1, lowest.min())
    assert tree.separation[-1] == max(1, (1 - history.similarity).max())
    assert tree.positions()[tree.order].tolist() == list(range(tree.leaves))


@pytest.mark.parametrize("options", [{}, {"border_weight": 2.0}, {"size_power": 0.3}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_levels_are_membership_in_the_snapshots(seed, options):
    tree, history, *_ = random_tree(seed, **options)
    labels = snapshots(history, THETAS)
    regions = [{frozenset(np.flatnonzero(row == name).tolist()) for name in np.unique(row)} for row in labels]
    expected = [
        next((level for level, standing in enumerate(regions) if frozenset(leaves) in standing), -1)
        for leaves in members_of(history)
    ]
    levels = tree.levels(THETAS)
    assert levels.tolist() == expected
    assert len(set(expected)) > 2


def test_thresholds_equal_to_priorities_are_handled_as_in_the_snapshots():
    priority = np.array([0.5, 0.2, 0.5], np.float32)
    ones = np.ones(3, np.int64)
    leaves = np.zeros(3, np.int32), np.arange(1, 4, dtype=np.int32)
    history = MergeHistory(4, *leaves, priority, priority, ones, ones, priority)
    strength = np.zeros((1, 4), np.int32)
    tree = MergeTree(np.arange(4, dtype=np.int32)[None], RegionGraph.of_grid(1, 4), history, strength)
    # 0.5 is not below 0.5; node 5 is created at 0.2 and absorbed before the next snapshot
    assert tree.levels([0.5, 0.2]).tolist() == [-1, -1, 0, 0, 0, -1, 1]
    assert snapshots(history, [0.5, 0.2]).tolist() == [[0, 0, 2, 3], [0, 0, 0, 0]]


@pytest.mark.parametrize("size", [(13, 17), (26, 34), (40, 29), (7, 9)])
def test_encoded_masks_decode_to_the_nodes(size):
    tree, history, *_ = random_tree(3)
    nodes = [len(tree) - 1, 0, 3, tree.leaves, len(tree) - 3]
    decoded = decode_masks(tree.encode(nodes, size))
    rows = ((np.arange(size[0]) + 0.5) * 13 / size[0]).astype(int)
    cols = ((np.arange(size[1]) + 0.5) * 17 / size[1]).astype(int)
    expected = masks_of(tree, history)[nodes][:, rows][:, :, cols]
    assert np.array_equal(decoded, expected)
    assert tree.encode([], size) == []


@pytest.mark.skipif(numba is None, reason="numba is not installed")
def test_plain_functions_equal_the_compiled_ones(monkeypatch):
    tree, history, graph, strength = random_tree(4, size_power=0.3)
    for name in ("children", "accumulate", "depth_first"):
        assert getattr(merge_tree, f"_{name}") is not getattr(merge_tree, f"_plain_{name}")
        monkeypatch.setattr(merge_tree, f"_{name}", getattr(merge_tree, f"_plain_{name}"))
    plain = MergeTree(tree.labels, graph, history, strength)
    for name, value in vars(tree).items():
        assert np.array_equal(value, getattr(plain, name)), name


@pytest.mark.parametrize("plain", [False, True])
def test_leaves_without_pixels_do_not_affect_boxes(plain, monkeypatch):
    if plain:
        for name in ("children", "accumulate", "depth_first"):
            monkeypatch.setattr(merge_tree, f"_{name}", getattr(merge_tree, f"_plain_{name}"))
    features = np.random.default_rng(0).standard_normal((5, 4, 3)).astype(np.float32)
    tree = grid_tree(features, (2, 3))  # 20 cells on 6 pixels
    assert tree.leaves == 20
    assert (tree.area[:20] == 0).sum() == 14
    for node in range(len(tree)):
        mask = np.isin(tree.labels, tree.order[tree.first[node] : tree.last[node]])
        assert tree.area[node] == mask.sum()
        if mask.any():
            ys, xs = np.nonzero(mask)
            assert tree.box[node].tolist() == [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]
        else:
            assert tree.mask(node).size == 0
    decoded = decode_masks(tree.encode(range(len(tree)), (2, 3)))
    assert decoded.sum(axis=(1, 2)).tolist() == tree.area.tolist()


def test_a_single_leaf_is_the_photo():
    tree = grid_tree(np.ones((1, 1, 2)), (3, 4))
    assert (len(tree), tree.area.tolist(), tree.box.tolist()) == (1, [12], [[0, 0, 3, 4]])
    assert tree.levels([0.5]).tolist() == [0]
    assert (tree.birth[0], tree.death[0], tree.separation[0], tree.border[0]) == (1, -1, 1, 0)

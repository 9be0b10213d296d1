"""Overlaps computed from the trees equal those of the decoded masks."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.exploration.candidates import Candidates
from sohes_d2.structures.masks import decode_masks

from .test_merge_tree import random_tree


def candidates_and_masks(count: int, seed: int = 0):
    """Some nodes of ``count`` trees over one photo, and their (M, H, W) masks."""
    trees = [random_tree(seed + t, (19, 23), 6 + 7 * t)[0] for t in range(count)]
    generator = np.random.default_rng(seed)
    nodes = [np.sort(generator.permutation(len(tree))[: 3 + len(tree) // 2]) for tree in trees]
    masks = np.concatenate([decode_masks(tree.encode(n, (19, 23))) for tree, n in zip(trees, nodes)])
    return Candidates(trees, nodes), masks.astype(bool)


def ious(masks: np.ndarray) -> np.ndarray:
    flat = masks.reshape(len(masks), -1).astype(np.int64)
    shared = flat @ flat.T
    area = flat.sum(axis=1)
    return shared / (area[:, None] + area - shared)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("seed", [0, 10])
def test_overlaps_equal_those_of_the_masks(count, seed):
    candidates, masks = candidates_and_masks(count, seed)
    assert len(candidates) == len(masks)
    assert candidates.area.tolist() == masks.sum(axis=(1, 2)).tolist()
    expected = ious(masks)
    for k in range(len(candidates)):
        np.testing.assert_allclose(candidates.row(k), expected[k], rtol=1e-6)
    index = np.random.default_rng(seed).permutation(len(candidates))[:9]
    flat = masks[index].reshape(len(index), -1).astype(float)
    np.testing.assert_allclose(candidates.coverage(index), flat @ flat.T / flat.sum(axis=1)[:, None])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("block", [1, 4, 256])
def test_agreement_is_the_mean_best_iou_in_the_other_trees(count, block):
    candidates, masks = candidates_and_masks(count)
    iou = ious(masks)
    others = [[t for t in range(count) if t != own] for own in candidates.tree]
    expected = [np.mean([iou[k][candidates.tree == t].max() for t in others[k]]) for k in range(len(masks))]
    np.testing.assert_allclose(candidates.agreement(block), expected)


def test_one_tree_agrees_and_a_tree_without_candidates_does_not():
    assert (candidates_and_masks(1)[0].agreement() == 1).all()
    trees = [random_tree(t)[0] for t in range(2)]
    lonely = Candidates(trees, [np.array([0, 5]), np.zeros(0, np.int64)])
    assert lonely.agreement().tolist() == [0, 0]
    assert lonely.row(0)[0] == 1
    assert len(Candidates(trees, [[], []])) == 0

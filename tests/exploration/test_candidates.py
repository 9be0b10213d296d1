"""Overlaps computed from the trees equal those of the decoded masks; the criteria by which masks become labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers.proposals import proposal

from sohes_d2.exploration.candidates import Candidates, MaskFilter
from sohes_d2.structures.masks import decode_masks, encode_masks

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


def test_background_that_covers_corners_can_be_dropped():
    background = replace(proposal((0, 0, 50, 60)), mask=np.pad(np.zeros((30, 40), bool), 10, constant_values=True))
    assert MaskFilter().accepts(background, (50, 60))
    assert not MaskFilter(corners=3).accepts(background, (50, 60))
    assert MaskFilter(corners=3).accepts(proposal((0, 0, 40, 60)), (50, 60))  # two corners only
    assert not MaskFilter().accepts(proposal((0, 0, 50, 60)), (50, 60))  # more than 0.9 of the image
    assert not MaskFilter().accepts(proposal((0, 0, 20, 20), agreement=0.4), (50, 60))


def test_the_most_separated_candidates_are_refined():
    proposals = [proposal((0, 0, 9, 9), separation=value) for value in (0.5, 2.0, 0.7, 0.7, 0.1)]
    chosen = MaskFilter(max_candidates=3).candidates(proposals)
    assert [p.separation for p in chosen] == [2.0, 0.7, 0.7]
    assert MaskFilter().candidates(proposals) == proposals
    assert MaskFilter().candidates([]) == []


def test_the_better_scored_duplicate_is_kept_even_if_not_adjacent():
    masks = np.zeros((3, 10, 30), bool)
    masks[0, :, :20] = True
    masks[1, :, 25:] = True
    masks[2, :, :19] = True
    keep = MaskFilter(nms_threshold=0.9).best(encode_masks(masks), np.array([0.3, 0.5, 0.9]))
    assert keep.tolist() == [2, 1]
    # an IoU equal to the threshold, 190 / 200, is not a duplicate
    keep = MaskFilter(nms_threshold=0.95).best(encode_masks(masks), np.array([0.3, 0.5, 0.9]))
    assert keep.tolist() == [2, 1, 0]


def test_agreement_and_overlaps_that_equal_their_threshold_pass():
    assert MaskFilter(min_area=1, min_agreement=0.5).accepts(proposal((0, 0, 9, 9), agreement=0.5), (20, 20))
    assert not MaskFilter(min_area=1, min_agreement=0.5).accepts(proposal((0, 0, 9, 9), agreement=0.49), (20, 20))

    class Overlaps:
        def __len__(self):
            return 2

        def row(self, k):
            return np.array([[1, 0.75], [0.75, 1]], np.float32)[k]

    for threshold, kept in ((0.75, [0, 1]), (0.74, [0])):
        chosen = MaskFilter(nms_threshold=threshold).best_candidates(Overlaps(), np.array([0.9, 0.5]), np.ones_like)
        assert chosen[0].tolist() == kept

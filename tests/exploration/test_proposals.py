"""From nodes of a merge tree to masks in pixels."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.exploration.looks import grid_tree
from sohes_d2.exploration.proposals import Proposal, coverage_by, proposals_from_tree
from sohes_d2.exploration.regions import grid_leaves

THETAS = [0.9, 0.5, 0.0]


def paste(proposal: Proposal, size: tuple[int, int]) -> np.ndarray:
    full = np.zeros(size, bool)
    y0, x0, y1, x1 = proposal.box
    full[y0:y1, x0:x1] = proposal.mask
    return full


def proposal(box: tuple[int, int, int, int], **fields) -> Proposal:
    mask = np.ones((box[2] - box[0], box[3] - box[1]), bool)
    values = {"birth": 0.5, "death": 0.1, "level": 0, "source": "global", "cell": 1.0, "separation": 0.9, **fields}
    return Proposal(box=box, mask=mask, **values)


def test_nodes_in_pixels_equal_the_upsampled_snapshots():
    from .test_merging import merge_plainly

    features = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    tree = grid_tree(features, (23, 31))
    found = proposals_from_tree(tree, tree.levels(THETAS), (0, 0), 5.0, min_area=0, max_area=1e9)
    cells = grid_leaves((23, 31), (5, 7))
    expected: dict[bytes, int] = {}
    for level, labels in enumerate(merge_plainly(features).labels(THETAS)):
        for name in np.unique(labels):
            expected.setdefault((labels == name)[cells].tobytes(), level)
    assert {paste(p, (23, 31)).tobytes(): p.level for p in found} == expected
    assert len(found) == len(expected)
    assert all(p.mask.any(axis=1)[[0, -1]].all() and p.mask.any(axis=0)[[0, -1]].all() for p in found)
    assert [p.level for p in found] == sorted(p.level for p in found)
    for level in range(len(THETAS)):
        firsts = [cells[p.box[0] : p.box[2], p.box[1] : p.box[3]][p.mask].min() for p in found if p.level == level]
        assert firsts == sorted(firsts)


def test_the_origin_offsets_the_tree_and_areas_are_in_pixels():
    tree = grid_tree(np.array([[[1, 0], [0.3, np.sqrt(1 - 0.09)]]]), (4, 10))
    levels = tree.levels([0.5, 0.1])
    found = proposals_from_tree(tree, levels, (10, 20), 5.0, min_area=20, max_area=20, source="local")
    assert [(p.box, p.area, p.source, p.cell) for p in found] == [
        ((10, 20, 14, 25), 20, "local", 5.0),
        ((10, 25, 14, 30), 20, "local", 5.0),
    ]
    assert [p.separation for p in found] == [pytest.approx(0.7)] * 2
    whole = proposals_from_tree(tree, levels, (10, 20), 5.0, min_area=21, max_area=40)
    assert [(p.box, p.birth, p.death, p.level) for p in whole] == [((10, 20, 14, 30), pytest.approx(0.3), -1.0, 1)]


def test_a_grid_finer_than_the_pixels_makes_no_empty_masks():
    tree = grid_tree(np.eye(16).reshape(4, 4, 16), (2, 2))
    found = proposals_from_tree(tree, tree.levels([0.5]), (0, 0), 0.5, min_area=0, max_area=4)
    assert sorted(p.box for p in found) == [(0, 0, 1, 1), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 2, 2)]


def test_coverage_and_trimming():
    a, b = proposal((0, 0, 4, 4)), proposal((2, 1, 10, 10))
    assert coverage_by(a, b) == 6 / 16
    assert coverage_by(b, a) == 6 / 72
    assert coverage_by(a, proposal((5, 5, 6, 6))) == 0
    loose = Proposal((3, 3, 9, 9), np.pad(np.ones((2, 3), bool), ((1, 3), (2, 1))), 0.5, 0.1, 0, "global", 1.0, 0.9)
    assert loose.trimmed().box == (4, 5, 6, 8)
    assert loose.trimmed().area == loose.area == 6

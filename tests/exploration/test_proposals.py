"""From nodes of a merge tree to masks in pixels; local re-clustering: choice of regions, and the proposals kept."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.proposals import proposal
from helpers.snapshots import snapshots

from sohes_d2.exploration.looks import grid_tree
from sohes_d2.exploration.proposals import LocalReclustering, Proposal, coverage_by, crop_box, proposals_from_tree
from sohes_d2.exploration.regions import grid_leaves

THETAS = [0.9, 0.5, 0.0]
SIZE = (100, 200)


def paste(proposal: Proposal, size: tuple[int, int]) -> np.ndarray:
    full = np.zeros(size, bool)
    y0, x0, y1, x1 = proposal.box
    full[y0:y1, x0:x1] = proposal.mask
    return full


def test_nodes_in_pixels_equal_the_upsampled_snapshots():
    from .test_merging import merge_plainly

    features = np.random.default_rng(0).standard_normal((5, 7, 3)).astype(np.float32)
    tree = grid_tree(features, (23, 31))
    found = proposals_from_tree(tree, tree.levels(THETAS), (0, 0), 5.0, min_area=0, max_area=1e9)
    cells = grid_leaves((23, 31), (5, 7))
    expected: dict[bytes, int] = {}
    for level, labels in enumerate(snapshots(merge_plainly(features), THETAS)):
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


def test_windows_grow_up_to_the_border_of_the_image():
    small = Proposal((2, 3, 8, 9), np.eye(6, dtype=bool), 0.5, 0.1, 0, "global", 1.0, 0.9)
    for margin, box in ((0, (2, 3, 8, 9)), (1, (1, 2, 9, 10)), (4, (0, 0, 10, 13))):
        grown = small.grown(margin, (10, 20))
        assert grown.box == box and grown.window == (slice(box[0], box[2]), slice(box[1], box[3]))
        assert np.array_equal(paste(grown, (10, 20)), paste(small, (10, 20)))


def closer(**options) -> LocalReclustering:
    return LocalReclustering(**{"large": True, **options})


def test_small_regions_come_first_by_persistence_then_large_ones():
    proposals = [
        proposal((0, 0, 60, 60)),
        proposal((10, 10, 20, 20), birth=0.5, death=0.4),
        proposal((70, 150, 80, 160), birth=0.9, death=0.1),
        proposal((90, 0, 94, 40)),  # lower than min_side
    ]
    found = closer(min_side=8, context=1.0).choose(proposals, SIZE)
    assert found == [(2, (70, 150, 80, 160)), (1, (10, 10, 20, 20)), (0, (0, 0, 60, 60))]
    assert [k for k, _ in closer(large=False, min_side=8).choose(proposals, SIZE)] == [2, 1]
    assert [k for k, _ in closer(large=False, min_side=8, max_crops=1).choose(proposals, SIZE)] == [2]
    assert closer().choose([], SIZE) == []


def test_duplicate_crops_are_skipped():
    proposals = [proposal((10, 10, 20, 20)), proposal((10, 10, 20, 19)), proposal((10, 30, 20, 40))]
    chosen = closer(min_side=4, context=1.0, nms_threshold=0.8).choose(proposals, SIZE)
    assert [k for k, _ in chosen] == [0, 2]


def test_crops_have_context_and_stay_in_the_image():
    assert crop_box((20, 20, 40, 60), 1.5, SIZE) == (15, 10, 45, 70)
    assert crop_box((0, 190, 10, 200), 2.0, SIZE) == (0, 185, 15, 200)
    image = np.arange(100 * 200 * 3, dtype=np.uint32).reshape(100, 200, 3).astype(np.uint8)
    assert closer(crop_size=64).crop(image, (0, 190, 10, 200)).shape == (64, 64, 3)


def test_sub_masks_are_inside_their_region():
    # the two halves of the crop differ; the region is the left half and five more columns
    features = np.zeros((8, 8, 2), np.float32)
    features[:, :4, 0] = 1
    features[:, 4:, 1] = 1
    inside = proposal((0, 0, 40, 25))
    found = closer().proposals(features, (0, 0, 40, 40), inside, [0.9, 0.5], min_area=50)
    assert [(p.box, p.source) for p in found] == [((0, 0, 40, 20), "local")]
    # with 0.2, the other half (5 of 20 columns inside) passes as well
    assert len(closer(inside=0.2).proposals(features, (0, 0, 40, 40), inside, [0.9, 0.5], min_area=50)) == 2
    assert closer().proposals(features, (0, 0, 40, 40), inside, [0.9, 0.5], min_area=801) == []


@pytest.mark.parametrize("size", [(1, 1), (3, 200)])
def test_tiny_images_have_no_crops(size):
    assert closer().choose([proposal((0, 0, 1, 1))], size) == []

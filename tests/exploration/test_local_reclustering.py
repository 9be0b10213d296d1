"""Local re-clustering: choice of regions, and the proposals kept."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.exploration.local_reclustering import LocalReclustering, crop_box

from .test_proposals import proposal

SIZE = (100, 200)


def closer(**options) -> LocalReclustering:
    return LocalReclustering(**{"enabled": True, "large": True, **options})


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
    # disabled explicitly and by default
    assert closer(enabled=False, min_side=8).choose(proposals, SIZE) == []
    assert LocalReclustering(min_side=8).choose(proposals, SIZE) == []


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

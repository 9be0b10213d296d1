"""From regions of a grid to masks in pixels."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.exploration.merging import MergeHistory
from sohes_d2.exploration.proposals import Proposal, coverage_by, proposals_from_regions


def paste(proposal: Proposal, size: tuple[int, int]) -> np.ndarray:
    full = np.zeros(size, bool)
    y0, x0, y1, x1 = proposal.box
    full[y0:y1, x0:x1] = proposal.mask
    return full


def proposal(box: tuple[int, int, int, int], **fields) -> Proposal:
    mask = np.ones((box[2] - box[0], box[3] - box[1]), bool)
    values = {"birth": 0.5, "death": 0.1, "level": 0, "source": "global", "cell": 1.0, **fields}
    return Proposal(box=box, mask=mask, **values)


def test_regions_in_pixels_equal_the_upsampled_labels():
    generator = np.random.default_rng(0)
    from sohes_d2.exploration.merging import merge_regions

    regions = merge_regions(generator.standard_normal((5, 7, 3)).astype(np.float32)).regions([0.9, 0.5, 0.0])
    found = proposals_from_regions(regions, (0, 0, 23, 31), min_area=0, max_area=1e9)
    rows = ((np.arange(23) + 0.5) * 5 / 23).astype(int)
    cols = ((np.arange(31) + 0.5) * 7 / 31).astype(int)
    expected = {
        (int(first), (regions.labels[first] == name)[rows][:, cols].tobytes())
        for name, first in zip(regions.ids, regions.first)
    }
    assert {(p.level, paste(p, (23, 31)).tobytes()) for p in found} == expected
    assert len(found) == len(regions)
    assert all(p.mask.any(axis=1)[[0, -1]].all() and p.mask.any(axis=0)[[0, -1]].all() for p in found)


def test_a_frame_places_the_grid_in_the_image_and_areas_are_pixels():
    history = MergeHistory((1, 2), np.zeros(1, np.int32), np.ones(1, np.int32), np.array([0.3], np.float32))
    regions = history.regions([0.5, 0.1])
    found = proposals_from_regions(regions, (10, 20, 14, 30), min_area=20, max_area=20, source="local")
    assert [(p.box, p.area, p.source, p.cell) for p in found] == [
        ((10, 20, 14, 25), 20, "local", 5.0),
        ((10, 25, 14, 30), 20, "local", 5.0),
    ]
    whole = proposals_from_regions(regions, (10, 20, 14, 30), min_area=21, max_area=40)
    assert [(p.box, p.birth, p.death) for p in whole] == [((10, 20, 14, 30), pytest.approx(0.3), -1.0)]


def test_a_grid_finer_than_the_pixels_makes_no_empty_masks():
    history = MergeHistory((4, 4), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    found = proposals_from_regions(history.regions([0.5]), (0, 0, 2, 2), min_area=1, max_area=4)
    assert sorted(p.box for p in found) == [(0, 0, 1, 1), (0, 1, 1, 2), (1, 0, 2, 1), (1, 1, 2, 2)]


def test_coverage_and_trimming():
    a, b = proposal((0, 0, 4, 4)), proposal((2, 1, 10, 10))
    assert coverage_by(a, b) == 6 / 16
    assert coverage_by(b, a) == 6 / 72
    assert coverage_by(a, proposal((5, 5, 6, 6))) == 0
    loose = Proposal((3, 3, 9, 9), np.pad(np.ones((2, 3), bool), ((1, 3), (2, 1))), 0.5, 0.1, 0, "global", 1.0)
    assert loose.trimmed().box == (4, 5, 6, 8)
    assert loose.trimmed().area == loose.area == 6

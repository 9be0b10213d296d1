"""Mask refinement: the guided filter against its formula, windows, agreement and holes."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.proposals import proposal

from sohes_d2.exploration.refinement import REFINERS, Refiner, guided, refine_proposals
from sohes_d2.exploration.refinement.base import fill_holes


def two_colours(height: int = 40, width: int = 60, edge: int = 33) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :edge] = (200, 60, 40)
    image[:, edge:] = (40, 90, 200)
    noise = np.random.default_rng(0).integers(-12, 13, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def test_the_edge_of_a_mask_moves_to_the_edge_of_the_photo():
    image = two_colours()
    staircase = np.zeros((40, 60), bool)
    for row in range(40):
        staircase[row, : 30 + 6 * (row // 8 % 2)] = True
    refined = guided(radius=6.0).on(image, cell=1)((slice(None), slice(None)), staircase)
    assert refined[:, :33].mean() > 0.99
    assert refined[:, 33:].mean() < 0.01


def test_equals_the_linear_model_of_the_paper():
    generator = np.random.default_rng(1)
    image = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
    mask = generator.random((12, 14)) > 0.5
    radius, epsilon = 2, 1e-2
    padded_image = np.pad(image / 255.0, ((radius,) * 2, (radius,) * 2, (0, 0)), mode="symmetric")
    padded_mask = np.pad(mask.astype(float), radius, mode="symmetric")
    slope, offset = np.zeros((12, 14, 3)), np.zeros((12, 14))
    for y in range(12):
        for x in range(14):
            square = padded_image[y : y + 5, x : x + 5].reshape(-1, 3)
            target = padded_mask[y : y + 5, x : x + 5].ravel()
            covariance = np.cov(square.T, bias=True) + epsilon * np.eye(3)
            slope[y, x] = np.linalg.solve(covariance, square.T @ target / 25 - square.mean(axis=0) * target.mean())
            offset[y, x] = target.mean() - slope[y, x] @ square.mean(axis=0)
    model = np.pad(np.dstack([slope, offset]), ((radius,) * 2, (radius,) * 2, (0, 0)), mode="symmetric")
    means = np.lib.stride_tricks.sliding_window_view(model, (5, 5), axis=(0, 1)).mean(axis=(-2, -1))
    soft = (means[..., :3] * image / 255.0).sum(axis=2) + means[..., 3]
    refined = guided(radius=2.0, epsilon=epsilon).on(image, cell=1)((slice(None), slice(None)), mask)
    decided = np.abs(soft - 0.5) > 1e-3
    assert decided.mean() > 0.9
    assert np.array_equal(refined[decided], soft[decided] > 0.5)


def test_a_window_gives_the_same_result_as_the_whole_image():
    image = two_colours()
    mask = np.zeros((40, 60), bool)
    mask[15:25, 20:31] = True
    refiner = guided()
    refine = refiner.on(image, cell=3)
    whole = refine((slice(0, 40), slice(0, 60)), mask)
    window = proposal((15, 20, 25, 31)).grown(refiner.reach(3), (40, 60)).window
    assert np.array_equal(refine(window, mask[window]), whole[window])
    assert whole.sum() == whole[window].sum()


def test_a_flat_photo_keeps_the_mask():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    refined = guided().refine(np.full((60, 60, 3), 127, np.uint8), mask)
    assert (refined & mask).sum() / (refined | mask).sum() > 0.9  # only the corners are rounded


def test_the_radius_follows_the_cells():
    refiner = guided(radius=1.33, max_radius=12)
    assert [refiner.reach(cell) for cell in (0.5, 3.0, 4.0, 100.0)] == [2, 8, 12, 24]
    assert refiner.describe() == {"training_free": True, "radius": 1.33, "max_radius": 12, "epsilon": 1e-3}
    with pytest.raises(ValueError, match="epsilon > 0"):
        guided(epsilon=0)


def test_none_changes_nothing():
    mask = np.random.default_rng(0).random((6, 6)) > 0.5
    none = REFINERS.get("none")()
    assert none.reach(5) == 0
    assert none.on(two_colours(6, 6, 3), 1)((slice(None), slice(None)), mask) is mask


def test_proposals_get_their_refined_mask_its_box_and_the_agreement():
    class Bottom(Refiner):
        def reach(self, cell):
            return int(cell)

        def refine(self, image, mask):  # moves the mask to the lower rows of its window, with a hole
            moved = np.zeros(mask.shape, bool)
            moved[-4:] = True
            moved[-3, 4] = False
            return moved

    image = np.zeros((20, 30, 3), np.uint8)
    # windows of 8 rows; the mask has rows 2 to 5, the refined one rows 4 to 7
    first, second = proposal((4, 4, 8, 12), cell=2.0), proposal((0, 0, 4, 8), cell=1.0)
    refined = refine_proposals(Bottom(), image, [first, second], True)
    assert [p.box for p in refined] == [(6, 2, 10, 14), (1, 0, 5, 9)]
    assert all(p.mask.all() for p in refined)
    assert refined[0].agreement == 15 / (32 + 47 - 15)
    with_hole = refine_proposals(Bottom(), image, [first], False)[0]
    assert with_hole.box == (6, 2, 10, 14) and not with_hole.mask[1, 4] and with_hole.area == 47


def test_holes_are_filled_but_not_concavities():
    mask = np.ones((7, 9), bool)
    mask[2:4, 2:4] = False
    mask[5:, 6] = False
    filled = fill_holes(mask)
    assert filled[2:4, 2:4].all()
    assert not filled[5:, 6].any()
    diagonal = np.ones((5, 5), bool)
    diagonal[1, 1] = diagonal[0, 0] = False  # touches the outside only at a corner
    assert fill_holes(diagonal)[1, 1] and not fill_holes(diagonal)[0, 0]

"""Mask refiners, which turn a mask on the feature grid into one with pixel-accurate borders.

The interface, and the refiners that need no optional package: `none` and `guided`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from fvcore.common.registry import Registry

from ..proposals import Proposal, Window

REFINERS = Registry("REFINERS")
REFINERS.__doc__ = "Refiners by name. Each is a subclass of Refiner whose constructor takes only keywords."

# Radii of `guided` in pixels; few, because masks of equal radius share computations for the whole image.
_RADII = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Refiner(ABC):
    """Refines one mask at a time, on a window of the image: the mask's box plus a margin.

    Attributes:
        training_free: False if the refiner's weights were trained on human masks; labels refined with it are then not
            purely self-supervised.
    """

    training_free: bool = True

    def reach(self, cell: float) -> int:
        """How far, in pixels, the outline of a mask with cells of ``cell`` pixels may move: the window's margin."""
        return math.ceil(2 * cell)

    @abstractmethod
    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Refine a mask.

        Args:
            image: (H, W, 3) uint8 RGB, the window's pixels.
            mask: (H, W) bool.

        Returns:
            (H, W) bool.
        """

    def on(self, image: np.ndarray, cell: float) -> Callable[[Window, np.ndarray], np.ndarray]:
        """Bind to an image and a cell size in pixels; returns a function of a window and the mask in it.

        Overridden by refiners that precompute terms of an image for all of its masks, or that depend on the cell size.
        The result is used for all cell sizes of equal ``reach``.
        """
        return lambda window, mask: self.refine(image[window], mask)

    def describe(self) -> dict[str, Any]:
        """JSON-ready public settings, for the label file."""
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"training_free": self.training_free, **settings}


def refine_proposals(
    refiner: Refiner, image: np.ndarray, proposals: Sequence[Proposal], holes_are_filled: bool
) -> list[Proposal]:
    """Refine the masks of proposals and set their ``agreement``, the IoU of a mask before and after.

    Args:
        refiner: refines the outlines.
        image: (H, W, 3) uint8 RGB.
        proposals: proposals in the image.
        holes_are_filled: whether holes are filled afterwards; the agreement is computed before.
    """
    refined = list(proposals)
    reaches = [refiner.reach(proposal.cell) for proposal in proposals]
    # Grouped by reach: proposals of similar cell size share what the refiner precomputes for the image. For a large
    # photo, memory does not suffice for all sizes at once.
    for reach in sorted(set(reaches)):
        members = [k for k, value in enumerate(reaches) if value == reach]
        refine = refiner.on(image, proposals[members[0]].cell)
        for k in members:
            before = proposals[k].grown(reach, image.shape[:2])
            after = refine(before.window, before.mask)
            union = np.count_nonzero(before.mask | after)
            agreement = np.count_nonzero(before.mask & after) / union if union else 0.0
            mask = fill_holes(after) if holes_are_filled else after
            refined[k] = replace(before, mask=mask, agreement=agreement).trimmed()
    return refined


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of an (H, W) bool mask: background that is not 4-connected to the image border."""
    outside = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    outside[1:-1, 1:-1] = ~mask
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return outside[1:-1, 1:-1] != 2


@REFINERS.register()
class none(Refiner):  # noqa: N801 (the class is named as the config names it)
    """Returns every mask unchanged."""

    def reach(self, cell: float) -> int:
        return 0

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return mask


@REFINERS.register()
class guided(Refiner):  # noqa: N801 (the class is named as the config names it)
    """Guided filter with a colour guide (He, Sun and Tang, "Guided Image Filtering", TPAMI 2013), thresholded at 0.5.

    In every (2 radius + 1)-pixel square the mask is fitted by a linear function of the colour; averaging these fits
    gives a soft mask with the edges of the photo. The cost is O(pixels of the window), for any radius.

    Args:
        radius: of the square, in cells of the mask's feature grid; roughly the error of its outline [D].
        max_radius: upper bound of the radius in pixels, 1 to 32 [D].
        epsilon: ridge on the colours' covariance, in squared units of colours in [0, 1]; smaller follows fainter edges
            [D].
    """

    def __init__(self, *, radius: float = 1.33, max_radius: int = 32, epsilon: float = 1e-3):
        if radius <= 0 or not 1 <= max_radius <= _RADII[-1] or epsilon <= 0:
            raise ValueError(
                "the guided refiner needs radius > 0, max_radius of 1 to 32 and epsilon > 0, "
                f"got {radius}, {max_radius} and {epsilon}"
            )
        self.radius = radius
        self.max_radius = max_radius
        self.epsilon = epsilon

    def reach(self, cell: float) -> int:
        return 2 * self._pixels(cell)

    def _pixels(self, cell: float) -> int:
        return next(step for step in _RADII if step >= min(self.radius * cell, self.max_radius) - 1e-6)

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return self.on(image, cell=3)((slice(0, image.shape[0]), slice(0, image.shape[1])), mask)

    def on(self, image: np.ndarray, cell: float) -> Callable[[Window, np.ndarray], np.ndarray]:
        # Terms that depend only on the photo are computed once for the whole photo and shared by its masks.
        side = 2 * self._pixels(cell) + 1
        colours = image.astype(np.float32) / 255
        mean = _mean(colours, side)
        inverse = _inverse_covariance(colours, mean, side, self.epsilon)

        def refine(window: Window, mask: np.ndarray) -> np.ndarray:
            target = mask.astype(np.float32)
            mean_target = _mean(target, side)
            # Slope and offset of the linear model in each square, side by side so that one call averages all four.
            model = np.empty((*mask.shape, 4), np.float32)
            covariance = _mean(colours[window] * target[..., None], side) - mean[window] * mean_target[..., None]
            for i in range(3):
                row = inverse[min(i, 0), max(i, 0)][window] * covariance[..., 0]
                row += inverse[min(i, 1), max(i, 1)][window] * covariance[..., 1]
                row += inverse[min(i, 2), max(i, 2)][window] * covariance[..., 2]
                model[..., i] = row
            model[..., 3] = mean_target - _dot(model, mean[window])
            model = _mean(model, side)
            return _dot(model, colours[window]) + model[..., 3] > 0.5

        return refine


def _mean(values: np.ndarray, side: int) -> np.ndarray:
    return cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Inner product over the three colours; much faster than a sum over such a short axis."""
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _inverse_covariance(
    colours: np.ndarray, mean: np.ndarray, side: int, epsilon: float
) -> dict[tuple[int, int], np.ndarray]:
    """Upper triangle {(i, j): (H, W) float32} of the inverse of each square's colour covariance plus ``epsilon``."""
    upper = [(i, j) for i in range(3) for j in range(i, 3)]
    entry = {}
    for i, j in upper:
        product = _mean(colours[..., i] * colours[..., j], side).astype(np.float64)
        covariance = product - mean[..., i].astype(np.float64) * mean[..., j]
        entry[i, j] = entry[j, i] = covariance + (epsilon if i == j else 0.0)
    cofactor = {}
    for i, j in upper:
        a, b, c, d = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
        cofactor[i, j] = entry[a, c] * entry[b, d] - entry[a, d] * entry[b, c]
    determinant = sum(entry[0, j] * cofactor[0, j] for j in range(3))
    # In exact arithmetic the determinant is at least epsilon cubed; rounding can make it smaller in flat squares.
    determinant = np.maximum(determinant, epsilon**3)
    return {key: (value / determinant).astype(np.float32) for key, value in cofactor.items()}

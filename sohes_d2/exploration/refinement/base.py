"""Interface of mask refiners, which turn a mask on the feature grid into one with pixel-accurate borders."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from fvcore.common.registry import Registry

REFINERS = Registry("REFINERS")
REFINERS.__doc__ = "Refiners by name. Each is a subclass of Refiner whose constructor takes only keywords."

Window = tuple[slice, slice]


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

        Refiners override it to share work between the masks of an image, or to adapt to the cell size; cells of equal
        ``reach`` are treated alike.
        """
        return lambda window, mask: self.refine(image[window], mask)

    def describe(self) -> dict[str, Any]:
        """JSON-ready public settings, for the label file."""
        settings = {k: v for k, v in vars(self).items() if not k.startswith("_")}
        return {"training_free": self.training_free, **settings}


@REFINERS.register()
class none(Refiner):  # noqa: N801 (the class is named as the config names it)
    """Returns every mask unchanged."""

    def reach(self, cell: float) -> int:
        return 0

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return mask


def margin_window(box: tuple[int, int, int, int], reach: int, image_size: tuple[int, int]) -> Window:
    """The box (y0, x0, y1, x1; ends exclusive) plus a margin of ``reach`` pixels, clipped to the image."""
    y0, x0, y1, x1 = box
    return (
        slice(max(0, y0 - reach), min(image_size[0], y1 + reach)),
        slice(max(0, x0 - reach), min(image_size[1], x1 + reach)),
    )

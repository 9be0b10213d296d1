"""Interface of feature extractors: one vector per cell of a grid over the image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from fvcore.common.registry import Registry

DEFAULT_TOKEN_BUDGET = 3600  # of networks: the patches of a 480 x 480 image at 8 pixels

FEATURE_EXTRACTORS = Registry("FEATURE_EXTRACTORS")
FEATURE_EXTRACTORS.__doc__ = """
Registry of feature extractors, looked up by ``cfg.EXPLORATION.FEATURES.NAME`` before timm's and torchvision's names.

The registered object is called with ``cfg`` and returns a :class:`FeatureExtractor`: a function, or a class whose
constructor takes ``cfg`` (Detectron2's ``@configurable`` makes one).
"""


class FeatureExtractor(ABC):
    """Extracts grids of feature vectors from images for the clustering of phase 1 (SOHES, section 3.1, step 1).

    Cell (r, c) of a (rows, cols) grid covers the pixels [r*H/rows, (r+1)*H/rows) x [c*W/cols, (c+1)*W/cols).

    Attributes:
        name: the name that selects this extractor in ``EXPLORATION.FEATURES.NAME``.
        cell: pixels of the resized input per cell side (the patch size of a ViT).
        token_budget: maximum number of cells per image, see :meth:`grid_size`.
        device: where :meth:`extract` computes.
    """

    name: str
    cell: int
    token_budget: int
    device: torch.device = torch.device("cpu")

    @property
    def on_host(self) -> bool:
        """Whether it runs on the CPU, in which case each worker process should have its own copy."""
        return self.device.type == "cpu"

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Grid (rows, cols) for an image of ``image_size`` (H, W) pixels.

        The aspect ratio is kept, ``rows * cols <= token_budget``, both are >= 1, and no cell is smaller than a pixel.
        """
        height, width = image_size
        if height < 1 or width < 1:
            raise ValueError(f"Image size {tuple(image_size)} has no pixels.")
        # rows = sqrt(budget * H / W), in integers, since rounding could exceed the budget.
        rows = min(max(math.isqrt(self.token_budget * height // width), 1), height, self.token_budget)
        cols = min(max(math.isqrt(self.token_budget * width // height), 1), width, self.token_budget // rows)
        return rows, cols

    def extract(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of ``images``, a list of (H, W, 3) uint8 RGB arrays of one size: (B, rows, cols, C) float32."""
        height, width = check_images(images)
        return self.extract_at(images, self.grid_size((height, width)))

    @abstractmethod
    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        """:meth:`extract` on a given ``grid`` (rows, cols), as needed for zoomed crops."""

    @abstractmethod
    def describe(self) -> dict:
        """JSON-ready metadata that identifies these features, stored in the ``info`` of every file made with them."""


def check_images(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """The common size (H, W) of a batch of RGB images.

    Raises:
        ValueError: an empty batch, another type or shape than (H, W, 3) uint8, or mixed sizes.
    """
    if len(images) == 0:
        raise ValueError("An empty batch has no features: pass at least one image.")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"An image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}.")
        if image.shape != images[0].shape:
            raise ValueError(
                f"Images of one batch must have one size: {images[0].shape} and {image.shape} do not match."
            )
    return images[0].shape[0], images[0].shape[1]

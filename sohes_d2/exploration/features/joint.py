"""Features of a network concatenated with colour and texture.

Colour and texture locate borders to the pixel, but do not group what belongs together; the tokens of a small network
help with grouping, on a coarser grid. Each part is scaled to unit length, multiplied by the square root of its weight
and concatenated, so that the cosine of two cells is the weighted mean of the two parts' cosines.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .base import FEATURE_EXTRACTORS, FeatureExtractor, check_images
from .color_texture import ColorTextureExtractor
from .vit_file import load_vit_file, vit_settings


class JointExtractor(FeatureExtractor):
    """Features of one extractor on its grid, concatenated with those of another, resampled to that grid.

    Both defaults are our own, chosen for the recall of the labels on the training split of BSDS500.

    Args:
        fine: defines the grid and the cell.
        coarse: runs on a grid with sides of 1 / ``shrink`` of that grid's.
        weight: of the coarse part's cosine in the mean, 0..1.
        shrink: ratio of the sides of the two grids, at least 1.

    Raises:
        ValueError: a weight or shrink out of range.
    """

    name = "joint"

    def __init__(self, fine: FeatureExtractor, coarse: FeatureExtractor, *, weight: float = 0.6, shrink: float = 3.0):
        if not 0 <= weight <= 1 or not shrink >= 1:
            raise ValueError(
                f"A joint feature needs a weight in [0, 1] and a shrink from 1 on, not {weight}, {shrink}."
            )
        self.fine, self.coarse, self.weight, self.shrink = fine, coarse, weight, shrink
        self.cell, self.token_budget = fine.cell, fine.token_budget
        self.device = coarse.device

    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        check_images(images)
        own = max(1, round(grid[0] / self.shrink)), max(1, round(grid[1] / self.shrink))
        fine, coarse = self.fine.extract_at(images, grid), self.coarse.extract_at(images, own)
        channels = fine.shape[-1]
        joined = np.empty((len(images), *grid, channels + coarse.shape[-1]), np.float32)
        joined[..., :channels] = fine
        del fine  # the parts take as much memory as the whole
        for k, feature in enumerate(coarse):
            joined[k, ..., channels:] = resampled(feature, grid)
        for part, weight in ((joined[..., :channels], 1 - self.weight), (joined[..., channels:], self.weight)):
            scale_to_unit_length(part)
            part *= np.float32(np.sqrt(weight))
        return joined

    def describe(self) -> dict:
        return {
            "name": self.name,
            "weight": self.weight,
            "shrink": self.shrink,
            "fine": self.fine.describe(),
            "coarse": self.coarse.describe(),
        }


def scale_to_unit_length(features: np.ndarray) -> None:
    """Scale every vector of (..., C) float32 to length 1, in place; zeros stay zeros."""
    # einsum avoids an array of squares, which for the many crops of a photo would cost as much as the network
    squares = np.einsum("...c,...c->...", features, features)
    features /= np.maximum(np.sqrt(squares), 1e-12)[..., None]


def resampled(feature: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resample (rows, cols, C) bilinearly to another grid (rows, cols); torch supports any number of channels."""
    if feature.shape[:2] == tuple(grid):
        return feature
    x = torch.from_numpy(feature).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, size=tuple(grid), mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).contiguous().numpy()


@FEATURE_EXTRACTORS.register()
def joint(cfg) -> FeatureExtractor:
    """``color_texture`` with the ViT of ``EXPLORATION.FEATURES.WEIGHTS``, as for ``vit_file``."""
    node = cfg.EXPLORATION.FEATURES
    settings = {key: value for key, value in vit_settings(cfg).items() if key != "token_budget"}
    fine = ColorTextureExtractor(token_budget=node.TOKEN_BUDGET) if node.TOKEN_BUDGET else ColorTextureExtractor()
    return JointExtractor(fine, load_vit_file(node.WEIGHTS, **settings))

"""Looks: the same photo clustered in several ways, each giving a merge tree over the photo's pixels.

Looks differ in the scale of the photo at which the leaves are found and in how pairs are weighted. An entity that one
look splits may be whole in another, and regions found in several looks are scored higher (`Candidates.agreement`).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .merge_tree import MergeTree
from .merging import merge_regions
from .regions import LEAVES, RegionGraph, consecutive, grid_leaves, pool_features, resize_labels, superpixels


@dataclass(frozen=True)
class Looks:
    """Settings of the leaves and the clustering of a photo. Lists have one value per look.

    Attributes:
        leaves: "superpixels" [D], or "grid", the cells of the features [P].
        smoothing, window: see `superpixels`.
        border_scales, border_half: see `border_strength`.
        scales: scale factors of the photo at which the superpixels are found, in (0, 1].
        border_weights: lambda, weights of the border strength relative to the cosine (0: none [P]).
        size_powers: exponents by which small regions merge first, see `merging` (0: none [P]).
    """

    leaves: str = "superpixels"
    smoothing: float = 1.0
    window: int = 3
    border_scales: tuple[float, ...] = (1.0, 2.0)
    border_half: float = 20.0
    scales: tuple[float, ...] = (1.0, 0.7, 0.5)
    border_weights: tuple[float, ...] = (2.0, 2.0, 2.0)
    size_powers: tuple[float, ...] = (0.0, 0.3, 0.1)

    def __post_init__(self) -> None:
        if self.leaves not in LEAVES:
            raise ValueError(f"EXPLORATION.LEAVES.NAME {self.leaves!r} is not one of {', '.join(LEAVES)}")
        if not len(self.scales) == len(self.border_weights) == len(self.size_powers) >= 1:
            raise ValueError(
                "EXPLORATION.LOOKS needs as many SCALES as BORDER_WEIGHTS and SIZE_POWERS, at least one; got "
                f"{len(self.scales)}, {len(self.border_weights)} and {len(self.size_powers)}"
            )
        if not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"EXPLORATION.LOOKS.SCALES must be in (0, 1], got {list(self.scales)}")
        if min(*self.border_weights, *self.size_powers, 0) < 0:
            raise ValueError("EXPLORATION.LOOKS.BORDER_WEIGHTS and SIZE_POWERS must not be negative")
        if self.leaves == "grid" and len(set(self.scales)) > 1:
            raise ValueError("EXPLORATION.LOOKS.SCALES belong to superpixels; with LEAVES.NAME grid they must be equal")

    def trees(self, image: np.ndarray, features: np.ndarray, strength: np.ndarray) -> list[MergeTree]:
        """One merge tree per look.

        Args:
            image: (H, W, 3) uint8 RGB.
            features: (rows, cols, C) on a grid that tiles the image.
            strength: (H, W) int32 border strength in units of 1 / STRENGTH_UNIT.
        """
        prepared: dict[float, tuple] = {}  # looks of the same scale share their leaves
        trees = []
        for scale, border_weight, size_power in zip(self.scales, self.border_weights, self.size_powers):
            if scale not in prepared:
                prepared[scale] = self._prepare(image, features, strength, scale)
            labels, graph, pooled, areas = prepared[scale]
            history = merge_regions(pooled, graph, areas=areas, border_weight=border_weight, size_power=size_power)
            trees.append(MergeTree(labels, graph, history, strength))
        return trees

    def _prepare(self, image: np.ndarray, features: np.ndarray, strength: np.ndarray, scale: float) -> tuple:
        """(labels, graph, features of the leaves, areas of the leaves) at one scale."""
        if self.leaves == "grid":
            return grid_parts(features, strength)
        size = image.shape[:2]
        if scale < 1:
            small = (max(8, round(size[1] * scale)), max(8, round(size[0] * scale)))
            image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        labels = consecutive(resize_labels(superpixels(image, self.smoothing, self.window), size))
        graph = RegionGraph.from_labels(labels, strength)
        return labels, graph, pool_features(labels, features), np.bincount(labels.ravel())


def grid_parts(features: np.ndarray, strength: np.ndarray) -> tuple[np.ndarray, RegionGraph, np.ndarray, np.ndarray]:
    """Labels, graph, features and areas of grid leaves, one per cell of (rows, cols, C) ``features``.

    Args:
        features: on a grid that tiles the pixels of ``strength``.
        strength: (H, W) int32 of `border_strength`.
    """
    rows, cols, channels = features.shape
    labels = grid_leaves(strength.shape, (rows, cols))
    areas = np.bincount(labels.ravel(), minlength=rows * cols)
    if areas.all() and strength.any():
        graph = RegionGraph.from_labels(labels, strength)
    else:  # a grid finer than the pixels has cells without pixels, which are neighbours only in the grid
        graph = RegionGraph.of_grid(rows, cols)
    return labels, graph, np.ascontiguousarray(features.reshape(-1, channels), np.float32), areas


def grid_tree(features: np.ndarray, size: tuple[int, int]) -> MergeTree:
    """The paper's clustering of one crop: square cells, cosine alone (SOHES section 3.1).

    Args:
        features: (rows, cols, C) on a grid that tiles the crop.
        size: (H, W) of the crop in pixels.
    """
    strength = np.zeros(size, np.int32)
    labels, graph, leaves, areas = grid_parts(features, strength)
    return MergeTree(labels, graph, merge_regions(leaves, graph, areas=areas), strength)

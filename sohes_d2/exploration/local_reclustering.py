"""Local re-clustering of zoomed crops, for small entities and parts that the grid of the whole image does not resolve.

SOHES section 3.1 zooms in on small regions; zooming in on large ones, too, raised recall in UnSAM's ablation and here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .looks import grid_tree
from .proposals import Box, Proposal, coverage_by, proposals_from_tree


@dataclass(frozen=True)
class LocalReclustering:
    """Settings of local re-clustering.

    Attributes:
        enabled: whether small regions are re-clustered.
        large: whether large regions are re-clustered, too.
        small_area_ratio: regions under this share of the image are small.
        min_side: regions whose box has a side shorter than this many pixels are skipped.
        context: ratio of the crop's sides to those of the region's box.
        crop_size: side in pixels to which every crop is resized.
        inside: a sub-mask is kept if this share of it lies inside the region.
        max_crops: maximum number of crops per image and size class; the most persistent regions first.
        nms_threshold: a crop that overlaps an earlier one by this IoU is a duplicate and is skipped.
    """

    enabled: bool = False
    large: bool = False
    small_area_ratio: float = 0.01
    min_side: int = 16
    context: float = 1.25
    crop_size: int = 256
    inside: float = 0.9
    max_crops: int = 32
    nms_threshold: float = 0.7

    def choose(self, proposals: Sequence[Proposal], image_size: tuple[int, int]) -> list[tuple[int, Box]]:
        """(index of the proposal, crop box in pixels) of the regions to re-cluster, small ones first."""
        if not self.enabled or not proposals:
            return []
        height, width = image_size
        areas = np.asarray([proposal.area for proposal in proposals])
        sides = np.asarray([min(p.box[2] - p.box[0], p.box[3] - p.box[1]) for p in proposals])
        small = areas < self.small_area_ratio * height * width
        persistence = np.asarray([proposal.birth - proposal.death for proposal in proposals])
        chosen: list[tuple[int, Box]] = []
        for wanted in [small, ~small] if self.large else [small]:
            boxes: list[Box] = []
            for index in np.argsort(-persistence, kind="stable"):
                if len(boxes) == self.max_crops:
                    break
                if not wanted[index] or sides[index] < self.min_side:
                    continue
                box = crop_box(proposals[index].box, self.context, image_size)
                if all(_box_iou(box, other) < self.nms_threshold for other in boxes):
                    boxes.append(box)
                    chosen.append((int(index), box))
        return chosen

    def crop(self, image: np.ndarray, box: Box) -> np.ndarray:
        """(crop_size, crop_size, 3) uint8: the crop as input of the extractor."""
        window = image[box[0] : box[2], box[1] : box[3]]
        size = (self.crop_size, self.crop_size)
        shrinks = min(window.shape[:2]) >= self.crop_size
        return cv2.resize(window, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)

    def proposals(
        self, features: np.ndarray, box: Box, inside: Proposal, thetas: Sequence[float], min_area: float
    ) -> list[Proposal]:
        """Cluster one crop and keep the regions that lie inside the zoomed region.

        Args:
            features: (rows, cols, C) of the crop.
            box: the crop in the image.
            inside: the zoomed region.
            thetas: descending merging thresholds.
            min_area: in pixels of the image.
        """
        size = (box[2] - box[0], box[3] - box[1])
        tree = grid_tree(features, size)
        cell = max(size[0] / features.shape[0], size[1] / features.shape[1])
        found = proposals_from_tree(tree, tree.levels(thetas), box[:2], cell, min_area, inside.area, source="local")
        return [proposal for proposal in found if coverage_by(proposal, inside) >= self.inside]


def crop_box(box: Box, context: float, image_size: tuple[int, int]) -> Box:
    """The box grown by ``context`` around its centre, clipped to the image."""
    y0, x0, y1, x1 = box
    grow_y, grow_x = (y1 - y0) * (context - 1) / 2, (x1 - x0) * (context - 1) / 2
    return (
        max(0, int(np.floor(y0 - grow_y))),
        max(0, int(np.floor(x0 - grow_x))),
        min(image_size[0], int(np.ceil(y1 + grow_y))),
        min(image_size[1], int(np.ceil(x1 + grow_x))),
    )


def _box_iou(a: Box, b: Box) -> float:
    shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    total = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / total

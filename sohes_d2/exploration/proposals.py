"""Mask proposals: candidates for labels, from the merge tree of a photo and from those of zoomed crops.

SOHES section 3.1 zooms in on small regions, for small entities and parts that the grid of the whole image does not
resolve; zooming in on large ones, too, raised recall in UnSAM's ablation and here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .features import FeatureExtractor
from .looks import grid_tree
from .merge_tree import MergeTree

Box = tuple[int, int, int, int]  # (y0, x0, y1, x1) in pixels, ends exclusive
Window = tuple[slice, slice]
# As many tokens as one or two whole images have; limits the device memory.
_CROPS_PER_BATCH = 32


@dataclass(frozen=True)
class Proposal:
    """One candidate mask, cropped to a window to save memory on large photos.

    Attributes:
        box: (y0, x0, y1, x1) of the window in the image, in pixels.
        mask: (y1 - y0, x1 - x0) bool.
        birth, death: priorities at which the region was made and absorbed, birth >= death.
        level: index of the first threshold whose snapshot contains it.
        source: "global", or "local" from a zoomed crop.
        cell: side of a feature cell in image pixels, the resolution of the mask's outline.
        separation: in [0, 2], 1 - similarity to the region with which it was merged.
        surround: in [0, 2], the mean of 1 - similarity to all its neighbours.
        agreement: IoU in [0, 1] of the mask before and after refinement.
    """

    box: Box
    mask: np.ndarray
    birth: float
    death: float
    level: int
    source: str
    cell: float
    separation: float
    surround: float = 1.0
    agreement: float = 1.0

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def window(self) -> Window:
        """The window as slices of the image."""
        y0, x0, y1, x1 = self.box
        return slice(y0, y1), slice(x0, x1)

    def grown(self, margin: int, image_size: tuple[int, int]) -> Proposal:
        """The same mask in a window with ``margin`` more pixels on each side, clipped to the image."""
        y0, x0, y1, x1 = self.box
        before = min(margin, y0), min(margin, x0)
        after = min(margin, image_size[0] - y1), min(margin, image_size[1] - x1)
        box = (y0 - before[0], x0 - before[1], y1 + after[0], x1 + after[1])
        return replace(self, box=box, mask=np.pad(self.mask, tuple(zip(before, after))))

    def trimmed(self) -> Proposal:
        """The same mask in its tight box."""
        x, y, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        if not width:
            return self
        y0, x0 = self.box[0] + y, self.box[1] + x
        return replace(self, box=(y0, x0, y0 + height, x0 + width), mask=self.mask[y : y + height, x : x + width])


def proposals_from_tree(
    tree: MergeTree,
    levels: np.ndarray,
    origin: tuple[int, int],
    cell: float,
    min_area: float,
    max_area: float,
    source: str = "global",
) -> list[Proposal]:
    """Nodes of a tree that are present at a threshold, as masks in pixels.

    Args:
        tree: of a photo or a crop.
        levels: (K,) from `MergeTree.levels`; nodes of level -1 are skipped.
        origin: (y, x) of the tree's first pixel in the photo.
        cell: side of a feature cell in pixels.
        min_area, max_area: bounds of the area in pixels; other nodes are skipped.
        source: of the proposals.

    Returns:
        Proposals by ascending level, within a level by their first leaf.
    """
    nodes = np.flatnonzero((levels >= 0) & (min_area <= tree.area) & (tree.area <= max_area) & (tree.area > 0))
    lowest = np.asarray([tree.order[tree.first[k] : tree.last[k]].min() for k in nodes], np.int64)
    proposals = []
    for node in nodes[np.lexsort((lowest, levels[nodes]))]:
        y0, x0, y1, x1 = (int(v) for v in tree.box[node])
        proposals.append(
            Proposal(
                box=(origin[0] + y0, origin[1] + x0, origin[0] + y1, origin[1] + x1),
                mask=tree.mask(node),
                birth=float(tree.birth[node]),
                death=float(tree.death[node]),
                level=int(levels[node]),
                source=source,
                cell=cell,
                separation=float(tree.separation[node]),
                surround=float(tree.surround[node]),
            )
        )
    return proposals


def coverage_by(proposal: Proposal, other: Proposal) -> float:
    """Share of a proposal's pixels that lie inside another one."""
    y0, x0 = max(proposal.box[0], other.box[0]), max(proposal.box[1], other.box[1])
    y1, x1 = min(proposal.box[2], other.box[2]), min(proposal.box[3], other.box[3])
    if y0 >= y1 or x0 >= x1:
        return 0.0
    shared = _part(proposal, (y0, x0, y1, x1)) & _part(other, (y0, x0, y1, x1))
    return float(np.count_nonzero(shared)) / max(1, proposal.area)


def _part(proposal: Proposal, box: Sequence[int]) -> np.ndarray:
    y, x = proposal.box[:2]
    return proposal.mask[box[0] - y : box[2] - y, box[1] - x : box[3] - x]


@dataclass(frozen=True)
class LocalReclustering:
    """Local re-clustering: regions are cropped, resized and clustered again.

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

    def search(
        self,
        image: np.ndarray,
        proposals: Sequence[Proposal],
        extractor: FeatureExtractor,
        thetas: Sequence[float],
        min_area: float,
    ) -> list[Proposal]:
        """Proposals from crops of an image.

        Args:
            image: (H, W, 3) uint8 RGB.
            proposals: of the whole image; some of their regions are cropped.
            extractor: of the features of the crops.
            thetas: descending merging thresholds.
            min_area: in pixels of the image.
        """
        chosen = self.choose(proposals, image.shape[:2])
        side = max(1, self.crop_size // extractor.cell)
        found: list[Proposal] = []
        for start in range(0, len(chosen), _CROPS_PER_BATCH):
            batch = chosen[start : start + _CROPS_PER_BATCH]
            crops = [self.crop(image, box) for _, box in batch]
            for (index, box), features in zip(batch, extractor.extract_at(crops, (side, side))):
                found += self.proposals(features, box, proposals[index], thetas, min_area)
        return found

    def choose(self, proposals: Sequence[Proposal], image_size: tuple[int, int]) -> list[tuple[int, Box]]:
        """(index of the proposal, crop box in pixels) of the regions to re-cluster, small ones first."""
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

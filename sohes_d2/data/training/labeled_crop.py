"""A training image with its masks, each stored as the image window that contains it, and copy-paste of its trees.

Copy-paste is that of Simple Copy-Paste (Ghiasi et al., CVPR 2021, section 3), but with trees instead of single objects:
both images are augmented by large-scale jitter, and pasted pixels replace the image, without blending, and are cut from
masks below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import block_diag

from detectron2.structures import BitMasks, Boxes, Instances

from ...structures.instance_fields import AncestorMatrix

# Entities above this share of the image are not pasted: they would hide most of it.
MAX_SHARE = 0.5


@dataclass
class MaskWindow:
    """A mask that is empty outside a window.

    Attributes:
        mask: (h, w) bool, the mask inside the window.
        y, x: the window's first pixel in the image.
    """

    mask: np.ndarray
    y: int
    x: int

    def __post_init__(self) -> None:
        self.area = int(np.count_nonzero(self.mask))

    def of(self, image: np.ndarray) -> np.ndarray:
        """View of an (H, W, ...) array inside the window."""
        height, width = self.mask.shape
        return image[self.y : self.y + height, self.x : self.x + width]

    def without(self, region: np.ndarray) -> MaskWindow:
        """The mask without a region, (H, W) bool."""
        return MaskWindow(self.mask & ~self.of(region), self.y, self.x)

    def box(self) -> tuple[int, int, int, int]:
        """Tight box (x0, y0, x1, y1) in pixels of the image, ends exclusive; zeros for an empty mask."""
        if not self.area:
            return 0, 0, 0, 0
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        return (
            self.x + int(columns[0]),
            self.y + int(rows[0]),
            self.x + int(columns[-1]) + 1,
            self.y + int(rows[-1]) + 1,
        )


@dataclass
class LabeledCrop:
    """An augmented training image with its masks.

    Attributes:
        image: (H, W, 3) uint8.
        masks: N masks in the coordinates of ``image``.
        ancestors: (N, N) bool, ``[i, j]`` = i is a proper ancestor of j.
    """

    image: np.ndarray
    masks: list[MaskWindow]
    ancestors: np.ndarray

    def subset(self, keep: Sequence[int] | np.ndarray) -> LabeledCrop:
        """The same image with a subset of the masks, by indices, and their ancestors."""
        keep = np.asarray(keep, np.int64)
        return LabeledCrop(self.image, [self.masks[k] for k in keep], self.ancestors[np.ix_(keep, keep)])

    def instances(self) -> Instances:
        """`gt_classes` (N,) zeros, `gt_boxes`, `gt_masks` (N, H, W) and `gt_ancestors` for Detectron2's models."""
        size = self.image.shape[:2]
        dense = np.zeros((len(self.masks), *size), dtype=bool)
        for k, mask in enumerate(self.masks):
            mask.of(dense[k])[:] = mask.mask
        instances = Instances(size)
        instances.gt_classes = torch.zeros(len(self.masks), dtype=torch.int64)
        instances.gt_boxes = Boxes(torch.tensor([mask.box() for mask in self.masks], dtype=torch.float32).view(-1, 4))
        instances.gt_masks = BitMasks(torch.from_numpy(dense))
        instances.gt_ancestors = AncestorMatrix(torch.from_numpy(np.ascontiguousarray(self.ancestors)))
        return instances


def trees_in_random_order(ancestors: np.ndarray, visible: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the trees of an image: each whole, followed by its visible descendants.

    Args:
        ancestors: (N, N) bool, ``[i, j]`` = i is a proper ancestor of j.
        visible: (N,) bool, masks that may be used; those without a visible ancestor are wholes.
        rng: generator for the order.

    Yields:
        (K,) int64 indices, the whole first.
    """
    wholes = np.flatnonzero(visible & ~ancestors[visible].any(axis=0))
    for whole in rng.permutation(wholes):
        yield np.concatenate([[whole], np.flatnonzero(ancestors[whole] & visible)])


def paste(target: LabeledCrop, donor: LabeledCrop, min_area: int) -> LabeledCrop:
    """Paste all masks of the donor onto the target, at the same positions.

    Args:
        target: not modified.
        donor: of the same size, with only the masks to paste.
        min_area: pixels; masks of the target with a smaller remaining area are dropped.

    Returns:
        The remaining masks of the target without the pasted pixels, then those of the donor. Ancestors are kept within
        each image; a pasted entity does not become a part of the entities below it.
    """
    if not donor.masks:
        return target
    covered = np.zeros(target.image.shape[:2], bool)
    for mask in donor.masks:
        mask.of(covered)[mask.mask] = True
    cut = [mask.without(covered) for mask in target.masks]
    image = np.where(covered[:, :, None], donor.image, target.image)
    kept = LabeledCrop(image, cut, target.ancestors).subset(np.flatnonzero([m.area >= min_area for m in cut]))
    return LabeledCrop(kept.image, kept.masks + donor.masks, block_diag(kept.ancestors, donor.ancestors))

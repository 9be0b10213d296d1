"""Masks at drawing size, each cropped to its box."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from ..structures.masks import RLE, decode_mask, mask_boxes


@dataclass(frozen=True)
class Shape:
    """A mask cropped to its box on a canvas.

    Attributes:
        y, x: position of the patch on the canvas, in pixels.
        mask: (h, w) bool patch; at least one pixel is set unless the mask itself is empty.
    """

    y: int
    x: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices of the patch on the canvas, to index an (H, W, ...) array."""
        return slice(self.y, self.y + self.mask.shape[0]), slice(self.x, self.x + self.mask.shape[1])


def scaled_shape(rle: RLE, size: tuple[int, int]) -> Shape:
    """Scale a mask to a canvas of another size (axes may scale differently). Small masks keep at least one pixel.

    Args:
        rle: mask of any size.
        size: (H, W) of the canvas.
    """
    x, y, width, height = (int(v) for v in mask_boxes([rle])[0])
    if not width or not height:
        return Shape(0, 0, np.zeros((0, 0), dtype=bool))
    mask = decode_mask(rle)
    rows, out_rows = _spans(y, y + height, mask.shape[0], size[0])
    cols, out_cols = _spans(x, x + width, mask.shape[1], size[1])
    patch = np.ascontiguousarray(mask[rows, cols]).astype(np.uint8) * 255
    out_size = (out_cols.stop - out_cols.start, out_rows.stop - out_rows.start)
    if out_size != patch.shape[::-1]:
        shrinks = out_size[0] < patch.shape[1] or out_size[1] < patch.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        patch = np.asarray(cv2.resize(patch, out_size, interpolation=how), np.uint8)
    return Shape(out_rows.start, out_cols.start, patch >= min(128, max(1, int(patch.max()))))


def _spans(low: int, high: int, source: int, target: int) -> tuple[slice, slice]:
    """Matching slices of a source and a target axis that cover the source's ``[low, high)``, in whole coarse pixels."""
    scale = target / source
    if scale >= 1:
        low, high = max(low - 1, 0), min(high + 1, source)  # room for the interpolated edge
        return slice(low, high), slice(round(low * scale), round(high * scale))
    start = min(int(low * scale), target - 1)
    stop = min(max(start + 1, int(np.ceil(high * scale))), target)
    return slice(int(start / scale), min(int(np.ceil(stop / scale)), source)), slice(start, stop)

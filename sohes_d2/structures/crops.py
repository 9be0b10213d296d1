"""Crop layers at inference, as in Segment Anything's automatic mask generator (Kirillov et al., 2023, appendix B).

At the input size of a whole photo, small entities have too few pixels. Layer k adds 2**k x 2**k overlapping crops, each
resized to about the same input size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .masks import RLE, decode_mask, encode_window, mask_boxes

Size = tuple[int, int]
Box = tuple[int, int, int, int]  # y0, x0, y1, x1 in pixels, ends exclusive


@dataclass(frozen=True)
class CropLayers:
    """Crops of a photo for inference, and the filter of their masks.

    Attributes:
        layers: number of crop layers in addition to the whole photo; 0 for none.
        overlap: share of a crop's side that overlaps with the next crop, in [0, 1).
        margin: masks closer than this, in pixels of the model's input, to a side of their crop are dropped as cut off,
            unless it is also a side of the photo; 0 keeps all.
        nms_threshold: NMS threshold (IoU) over the masks of a photo, in (0, 1].
        batch_size: crops per batch.
    """

    layers: int = 0
    overlap: float = 0.25
    margin: int = 4
    nms_threshold: float = 0.9
    batch_size: int = 4

    def __post_init__(self) -> None:
        if not 0 <= self.layers <= 4:
            raise ValueError(f"TEST.CROPS.LAYERS and CORRECTION.TEACHER_CROPS must be in 0..4, got {self.layers}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"TEST.CROPS.OVERLAP must be in [0, 1), got {self.overlap}")
        if not 0 < self.nms_threshold <= 1:
            raise ValueError(f"TEST.CROPS.NMS_THRESHOLD must be in (0, 1], got {self.nms_threshold}")
        if self.margin < 0 or self.batch_size < 1:
            raise ValueError(
                "TEST.CROPS needs a MARGIN of at least 0 and a BATCH_SIZE of at least 1; got "
                f"{self.margin} and {self.batch_size}"
            )

    @classmethod
    def from_config(cls, cfg: Any) -> CropLayers:
        """Read ``cfg.TEST.CROPS``.

        Raises:
            ValueError: a setting out of range.
        """
        return cls(**{key.lower(): value for key, value in cfg.TEST.CROPS.items()})

    @property
    def scale(self) -> float:
        """Side of the prepared image divided by the input size of the whole photo, such that no crop is enlarged."""
        return self._ratio(self.layers)

    def _ratio(self, layer: int) -> float:
        """Side of the photo divided by the side of a crop of that layer."""
        count = 2**layer
        return count - (count - 1) * self.overlap

    def boxes(self, size: Size) -> tuple[Size, list[list[Box]]]:
        """The crops of each layer, the whole photo first.

        Args:
            size: (H, W) of the prepared image.

        Returns:
            The input size (h, w) of all crops; and ``layers + 1`` lists of 4**layer boxes in the prepared image, row by
            row. The crops of a layer have equal size and cover the image.
        """
        seen = (max(1, round(size[0] / self.scale)), max(1, round(size[1] / self.scale)))
        layers = []
        for layer in range(self.layers + 1):
            height, width = (max(1, int(np.ceil(side / self._ratio(layer)))) for side in size)
            rows, columns = _starts(size[0], height, 2**layer), _starts(size[1], width, 2**layer)
            layers.append([(y, x, y + height, x + width) for y in rows for x in columns])
        return seen, layers

    def place(self, masks: Sequence[RLE], window: Box, photo_size: Size, seen: Size) -> tuple[np.ndarray, list[RLE]]:
        """Convert the masks of a crop to masks of the photo, without those cut by the crop.

        Args:
            masks: N RLEs of the window's size.
            window: the crop in the photo.
            photo_size: (H, W).
            seen: (h, w) input size of the crop.

        Returns:
            (M,) indices of the remaining masks, and their RLEs of ``photo_size``.
        """
        y0, x0, y1, x1 = window
        height, width = y1 - y0, x1 - x0
        boxes = mask_boxes(masks)
        corner = np.array([y0, x0])
        low, high = corner + boxes[:, 1::-1], corner + boxes[:, 1::-1] + boxes[:, 3:1:-1]  # (N, 2), y before x
        margin = (self.margin * height / seen[0], self.margin * width / seen[1])
        kept = np.flatnonzero(~is_cut(low, high, window, photo_size, margin))
        if window == (0, 0, *photo_size):
            return kept, [masks[k] for k in kept.tolist()]
        return kept, [encode_window(decode_mask(masks[k]), (y0, x0), photo_size) for k in kept.tolist()]


NO_CROPS = CropLayers()


def is_cut(low: Any, high: Any, window: Box, photo_size: Size, margin: tuple[float, float]) -> Any:
    """Whether bounding boxes come close to a side of their crop that is not a side of the photo, too.

    Args:
        low, high: (N, 2) starts and ends (exclusive) of the boxes in the photo, (y, x), both arrays or both tensors.
        window: the crop in the photo.
        photo_size: (H, W).
        margin: smallest distance from a side, vertically and horizontally, in pixels of the photo.

    Returns:
        (N,) bool.
    """
    cut = low[:, 0] < 0  # none
    for axis in (0, 1):
        if window[axis] > 0:
            cut = cut | (low[:, axis] < window[axis] + margin[axis])
        if window[axis + 2] < photo_size[axis]:
            cut = cut | (high[:, axis] > window[axis + 2] - margin[axis])
    return cut


def window_of(box: Box, size: Size, photo_size: Size) -> Box:
    """Scale a box from an image of ``size`` to a photo of ``photo_size``, in whole pixels, at least one."""
    y0, y1 = _scaled(box[0], box[2], photo_size[0] / size[0], photo_size[0])
    x0, x1 = _scaled(box[1], box[3], photo_size[1] / size[1], photo_size[1])
    return y0, x0, y1, x1


def _scaled(start: int, end: int, factor: float, side: int) -> tuple[int, int]:
    start = min(round(start * factor), side - 1)
    return start, min(max(round(end * factor), start + 1), side)


def _starts(side: int, crop: int, count: int) -> list[int]:
    """Starts of ``count`` crops evenly spaced along a side, from its start to its end."""
    return [round(k * (side - crop) / max(1, count - 1)) for k in range(count)]

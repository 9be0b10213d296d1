"""Geometric augmentations of images (large-scale jitter, crop, flip, padding; test images are resized) and their masks.

Masks are given by run lengths (`MaskWarp`), and the cost depends on the size of the result, not of the photo. Resizing,
cropping, flipping and padding map each row of the result to one row of the source, and each column to one column. Masks
are therefore not decoded at the size of the photo: only the run borders within the sampled columns are needed. The
result equals Detectron2's `apply_segmentation` of the decoded mask.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from fvcore.transforms.transform import BlendTransform, PadTransform

from detectron2.data import transforms as T

from .labeled_crop import MaskWindow

# Mid-grey, as in Detectron2's `FixedSizeCrop`: near the usual PIXEL_MEAN, so near 0 after normalisation, like the
# padding of batches.
PAD_VALUE = 128
FLIPS = ("horizontal", "vertical", "none")

PADDING = -1  # marks rows and columns without source

_COLOURS_ONLY = (T.NoOpTransform, BlendTransform, T.ColorTransform, T.PILColorTransform)


def training_augmentations(
    image_size: int, min_scale: float, max_scale: float, flip: str = "horizontal"
) -> list[T.Augmentation]:
    """Large-scale jitter: resize, crop, flip and pad to a square (Ghiasi et al., Simple Copy-Paste, CVPR 2021, sec. 3).

    Detectron2's `FixedSizeCrop` is not used: it draws one random number for both axes, so it crops only along the
    diagonal, and on the main branch it marks padding as part of every mask.

    Args:
        image_size: side of the square in pixels.
        min_scale, max_scale: the image is first resized to fit a square of ``image_size`` times a factor drawn
            uniformly from this range.
        flip: one of FLIPS, with probability 0.5.

    Raises:
        ValueError: a setting out of range.
    """
    if flip not in FLIPS:
        raise ValueError(f"INPUT.RANDOM_FLIP must be one of {', '.join(FLIPS)}, got {flip!r}")
    if not 0 < min_scale <= max_scale:
        raise ValueError(f"INPUT.MIN_SCALE and MAX_SCALE must be 0 < min <= max, got {min_scale} and {max_scale}")
    square = (image_size, image_size)
    augmentations = [LargeScaleJitter(min_scale, max_scale, *square), T.RandomCrop("absolute", square)]
    if flip != "none":
        # after the crop, on fewer pixels; since the crop is uniform, the distribution is the same
        augmentations.append(T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical"))
    return [*augmentations, PadToSquare(image_size)]


def inference_augmentations(min_size: int, max_size: int, scale: float = 1.0) -> list[T.Augmentation]:
    """Resize the shorter side to ``min_size``, or the longer to ``max_size`` if that gives a smaller image.

    Args:
        min_size, max_size: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST, pixels; a ``min_size`` of 0 keeps the size.
        scale: multiplies both, see `CropLayers.scale`.

    Raises:
        ValueError: ``scale`` is not 1, but ``min_size`` is 0.
    """
    if scale != 1 and min_size == 0:
        raise ValueError("TEST.CROPS.LAYERS needs INPUT.MIN_SIZE_TEST, the input size of a crop; it is 0")
    min_size, max_size = round(min_size * scale), round(max_size * scale)
    return [T.ResizeShortestEdge([min_size, min_size], max_size, "choice")]


class LargeScaleJitter(T.ResizeScale):
    """Detectron2's `ResizeScale`, with sizes converted to Python integers of at least 1.

    Release 0.6 of Detectron2 returns numpy integers, and the short side of a panorama could become 0.
    """

    def get_transform(self, image: np.ndarray) -> T.Transform:
        drawn = super().get_transform(image)
        return T.ResizeTransform(drawn.h, drawn.w, max(1, int(drawn.new_h)), max(1, int(drawn.new_w)), drawn.interp)


class PadToSquare(T.Augmentation):
    """Pad sides shorter than ``side`` pixels, to the right and below. Masks are padded with 0."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        below, right = max(0, self.side - height), max(0, self.side - width)
        return PadTransform(0, 0, right, below, width, height, pad_value=PAD_VALUE, seg_pad_value=0)


class MaskWarp:
    """Applies the transforms of one image to its masks.

    Attributes:
        output_size: (H, W) of the result.
    """

    def __init__(self, transforms: T.TransformList, input_size: tuple[int, int], output_size: tuple[int, int]):
        """
        Args:
            transforms: the result of an `AugmentationList`. With transforms that do not keep rows and columns
                (rotation, ...) or are unknown here, masks are decoded and transformed one by one.
            input_size: (H, W) of the source.
            output_size: (H, W) of the result.
        """
        self.output_size = output_size
        self._transforms = transforms
        self._input_size = input_size
        self._lines = _source_lines(transforms, input_size)

    def windows(self, boxes: np.ndarray) -> np.ndarray:
        """Compute windows of the result that contain the masks.

        Args:
            boxes: (N, 4) as (x, y, width, height), integers, tight around the masks in the source.

        Returns:
            (N, 4) int64 as (y0, y1, x0, x1), ends exclusive; empty for a mask outside the result.
        """
        if self._lines is None:
            return np.tile(np.array([0, self.output_size[0], 0, self.output_size[1]]), (len(boxes), 1))
        boxes = np.asarray(boxes).reshape(-1, 4).astype(np.int64)
        rows, columns = self._lines
        return np.concatenate(
            [_spans(rows, boxes[:, 1], boxes[:, 3]), _spans(columns, boxes[:, 0], boxes[:, 2])], axis=1
        )

    def photo_size(self) -> tuple[int, int]:
        """(h, w), extent of the source in the result; the area below and to the right is padding."""
        height, width = self._input_size
        _, below, _, right = self.windows(np.array([[0, 0, width, height]]))[0]
        return int(below), int(right)

    def warp(self, run_ends: np.ndarray, window: np.ndarray) -> MaskWindow:
        """Transform one mask.

        Args:
            run_ends: (K,) cumulative sum of the run lengths of its RLE.
            window: (4,) its row of `windows`.
        """
        y0, y1, x0, x1 = (int(v) for v in window)
        if self._lines is not None:
            rows, columns = self._lines
            return MaskWindow(sample_runs(run_ends, self._input_size[0], rows[y0:y1], columns[x0:x1]), y0, x0)
        height, width = self._input_size
        mask = sample_runs(run_ends, height, np.arange(height), np.arange(width)).astype(np.uint8)
        # == 1 because some transforms fill with other values
        return MaskWindow(np.asarray(self._transforms.apply_segmentation(mask)) == 1, 0, 0)


def sample_runs(run_ends: np.ndarray, height: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Compute ``mask[rows][:, columns]`` from the run lengths of a mask.

    Args:
        run_ends: (K,) cumulative sum of the column-major run lengths, alternating outside and inside.
        height: height of the mask in pixels.
        rows: (h,) ascending or descending, repetitions allowed.
        columns: (w,) in any order.

    Returns:
        (h, w) bool.
    """
    if len(rows) > 1 and rows[0] > rows[-1]:
        return sample_runs(run_ends, height, rows[::-1], columns)[::-1]
    h, w = len(rows), len(columns)
    starts = columns * height
    # Each run border toggles the value; the parity of those up to a column's first pixel is the value of that pixel.
    first = np.searchsorted(run_ends, starts, side="right")
    count = np.searchsorted(run_ends, starts + height, side="left") - first
    top = first & 1
    # toggles inside the columns, each moved to the first row of the result at or below it
    column = np.repeat(np.arange(w), count)
    index = np.arange(count.sum()) + np.repeat(first - (np.cumsum(count) - count), count)
    toggles = column * h + np.searchsorted(rows, run_ends[index] - starts[column], side="left")
    # and one where the start of a column differs from the end of the previous one
    before = np.concatenate([[0], (top + count)[:-1] & 1]) if w else top
    borders = np.sort(np.concatenate([toggles, np.flatnonzero(top != before) * h]))
    runs = np.diff(np.concatenate([[0], borders, [w * h]]))
    return np.repeat((np.arange(len(runs)) & 1).astype(bool), runs).reshape(w, h).T


def _source_lines(transforms: T.TransformList, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray] | None:
    """Source row of each row of the result, and the same for columns; None if a transform mixes rows or is unknown."""
    rows, columns = np.arange(size[0]), np.arange(size[1])
    for transform in _flat(transforms):
        if isinstance(transform, T.ResizeTransform):
            rows = rows[_nearest(transform.h, transform.new_h)]
            columns = columns[_nearest(transform.w, transform.new_w)]
        elif isinstance(transform, T.CropTransform):
            rows = rows[transform.y0 : transform.y0 + transform.h]
            columns = columns[transform.x0 : transform.x0 + transform.w]
        elif isinstance(transform, PadTransform):
            rows = np.pad(rows, (transform.y0, transform.y1), constant_values=PADDING)
            columns = np.pad(columns, (transform.x0, transform.x1), constant_values=PADDING)
        elif isinstance(transform, T.HFlipTransform):
            columns = columns[::-1]
        elif isinstance(transform, T.VFlipTransform):
            rows = rows[::-1]
        elif not isinstance(transform, _COLOURS_ONLY):
            return None
    return rows, columns


def _flat(transforms: T.TransformList) -> Iterator[T.Transform]:
    for transform in transforms.transforms:
        if isinstance(transform, T.TransformList):
            yield from _flat(transform)
        else:
            yield transform


def _nearest(old: int, new: int) -> np.ndarray:
    """(new,) source line of each line in Pillow's nearest resizing, with the same accumulation and rounding."""
    step = old / new
    return np.minimum(np.cumsum(np.r_[step * 0.5, np.full(new - 1, step)]).astype(np.int64), old - 1)


def _spans(lines: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, 2) first and end (exclusive) of the ``lines`` in [start, start + length); (0, 0) for none."""
    # padding is negative, so it is in no interval
    inside = (lines >= starts[:, None]) & (lines < (starts + lengths)[:, None])
    first, last = inside.argmax(axis=1), inside.shape[1] - inside[:, ::-1].argmax(axis=1)
    return np.where(inside.any(axis=1)[:, None], np.stack([first, last], axis=1), 0)

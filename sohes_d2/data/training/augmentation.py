"""Geometric augmentations of training images (large-scale jitter, crop, flip, padding), and resizing of test images."""

from __future__ import annotations

import numpy as np
from fvcore.transforms.transform import PadTransform

from detectron2.data import transforms as T

# Mid-grey, as in Detectron2's `FixedSizeCrop`: near the usual PIXEL_MEAN, so near 0 after normalisation, like the
# padding of batches.
PAD_VALUE = 128
FLIPS = ("horizontal", "vertical", "none")


def training_augmentations(
    image_size: int,
    min_scale: float,
    max_scale: float,
    flip: str = "horizontal",
    pad_value: int = PAD_VALUE,
) -> list[T.Augmentation]:
    """Large-scale jitter: resize, crop, flip and pad to a square (Ghiasi et al., Simple Copy-Paste, CVPR 2021, sec. 3).

    Detectron2's `FixedSizeCrop` is not used: it draws one random number for both axes, so it crops only along the
    diagonal, and on the main branch it marks padding as part of every mask.

    Args:
        image_size: side of the square in pixels.
        min_scale, max_scale: the image is first resized to fit a square of ``image_size`` times a factor drawn
            uniformly from this range.
        flip: one of FLIPS, with probability 0.5.
        pad_value: 0..255, padding of an image smaller than the square, to the right and below.

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
    return [*augmentations, PadToSize(image_size, image_size, pad_value)]


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


class PadToSize(T.Augmentation):
    """Pad an image to a size, to the right and below. Masks are padded with 0."""

    def __init__(self, height: int, width: int, pad_value: int = PAD_VALUE):
        """
        Args:
            height, width: pixels; larger sides are unchanged.
            pad_value: 0..255, value of the padding.
        """
        super().__init__()
        self._init(locals())

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        below, right = max(0, self.height - height), max(0, self.width - width)
        return PadTransform(0, 0, right, below, width, height, pad_value=self.pad_value, seg_pad_value=0)

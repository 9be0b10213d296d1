"""Dense training targets of the border network: number of label borders at each pixel, computed from run lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from detectron2.config import configurable

from ...errors import InputError
from ...structures.images import reduced, set_max_image_pixels
from .augmentation import PAD_VALUE
from .labels import ArrayCache, as_tensor, read_labels, read_photo

OUTSIDE = -1  # count at padding pixels


class BorderCountMapper:
    """Maps a Detectron2 dict to a random crop of the photo and the number of label borders at each pixel.

    Returns `image` (3, S, S) uint8 and `border_counts` (S, S) int16, see `border_counts`; OUTSIDE in the padding of
    photos smaller than the crop. Reading a thousand labels per photo dominates the cost, so photos and counts are
    cached up to a memory limit.

    All randomness comes from numpy's global generator, which the training stream seeds for each sample.
    """

    @configurable
    def __init__(
        self,
        *,
        crop_size: int = 160,
        max_pixels: int = 0,
        min_label_score: float = 0.0,
        image_format: str = "RGB",
        cache_megabytes: int = 2048,
    ):
        """
        Args:
            crop_size: side of the crop in pixels.
            max_pixels: larger photos are downsized to this first; 0: never.
            min_label_score: labels with a lower score are dropped.
            image_format: "RGB" or "BGR", channel order of the result.
            cache_megabytes: size of the cache of photos and counts, per process.

        Raises:
            ValueError: a setting out of range.
        """
        if crop_size < 2 or cache_megabytes < 0 or max_pixels < 0:
            raise ValueError(
                "INPUT.IMAGE_SIZE must be at least 2, MODEL.BORDER_NETWORK.CACHE_MEGABYTES and MAX_PIXELS at least 0"
            )
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be RGB or BGR, got {image_format!r}")
        self.crop_size = crop_size
        self.max_pixels = max_pixels
        self.min_label_score = min_label_score
        self.image_format = image_format
        self._cache = ArrayCache(cache_megabytes)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        set_max_image_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
        return {
            "crop_size": cfg.INPUT.IMAGE_SIZE,
            "max_pixels": cfg.MODEL.BORDER_NETWORK.MAX_PIXELS,
            "min_label_score": cfg.INPUT.MIN_LABEL_SCORE,
            "image_format": cfg.INPUT.FORMAT,
            "cache_megabytes": cfg.MODEL.BORDER_NETWORK.CACHE_MEGABYTES,
        }

    def map_or_raise(self, dataset_dict: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Map one sample.

        Raises:
            InputError: the photo cannot be read, differs in size from its labels, or has no usable label.
        """
        # cached arrays: they must not be modified
        image, counts = self._cache.get(dataset_dict["file_name"], lambda: self._read(dataset_dict))
        side = self.crop_size
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the stream seeds this generator)
        y, x = (int(rng.integers(max(0, length - side) + 1)) for length in counts.shape)
        image, counts = image[y : y + side, x : x + side], counts[y : y + side, x : x + side]
        if rng.random() < 0.5:
            image, counts = image[:, ::-1], counts[:, ::-1]
        below, right = side - counts.shape[0], side - counts.shape[1]
        if below or right:
            image = np.pad(image, ((0, below), (0, right), (0, 0)), constant_values=PAD_VALUE)
            counts = np.pad(counts, ((0, below), (0, right)), constant_values=OUTSIDE)
        return {
            "image": as_tensor(image, self.image_format),
            "border_counts": torch.from_numpy(np.array(counts, order="C")),
        }

    __call__ = map_or_raise

    def _read(self, dataset_dict: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Photo (H, W, 3) uint8 and counts (H, W) int16."""
        photo = read_photo(dataset_dict)
        annotations = dataset_dict.get("annotations", ())
        labels = read_labels(annotations, photo.shape[:2], self.min_label_score, where=dataset_dict["file_name"])
        if not labels.run_ends:
            raise InputError(f"the image {dataset_dict['file_name']!r} has no usable label")
        counts: np.ndarray = border_counts(labels.run_ends, photo.shape[:2]).astype(np.int16)
        image = reduced(photo, self.max_pixels)
        if image is not photo:
            # a pixel of the reduced photo gets the maximum over the block of pixels that it replaces
            block = -(-photo.shape[0] // image.shape[0])
            counts = cv2.dilate(counts, np.ones((block, block), np.uint8))
            counts = cv2.resize(counts, image.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        return image, counts


def border_counts(run_ends: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Number of mask borders at each pixel: masks that contain either the pixel or its neighbour, but not both.

    Args:
        run_ends: (K,) cumulative sums of the column-major run lengths of each mask, alternating outside and inside.
        size: (H, W) of the image.

    Returns:
        (H, W) int64: for each pixel, the maximum over its four neighbours.
    """
    height, width = size
    pixels = height * width
    below, right = np.zeros(pixels, np.int64), np.zeros(pixels + 1, np.int64)
    for ends in run_ends:
        ends = ends[ends < pixels]
        # If a run starts within a column, the pixel above belongs to the previous run.
        below[ends[ends % height > 0] - 1] += 1
        # A mask and its copy shifted by a column differ in the runs between the borders of both.
        borders = np.sort(np.concatenate([ends, ends[ends >= height] - height]))
        first = np.count_nonzero(ends < height) & 1  # whether the pixel next to pixel 0 in the second column is inside
        signs = 1 - 2 * ((np.arange(len(borders)) + first) & 1)
        np.add.at(right, borders, signs)
        right[0] += first
    right_counts = np.cumsum(right[:pixels]).reshape(width, height).T
    below_counts = below.reshape(width, height).T
    right_counts[:, -1] = 0  # no right neighbour
    ends_at = np.maximum(right_counts, below_counts)
    ends_at[:, 1:] = np.maximum(ends_at[:, 1:], right_counts[:, :-1])
    ends_at[1:] = np.maximum(ends_at[1:], below_counts[:-1])
    return ends_at

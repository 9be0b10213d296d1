"""Photos for pretraining, from folders, lists and COCO files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..data.sources import read_image_list
from ..data.training.labels import ArrayCache, read_photo


def list_photos(sources: Sequence[str]) -> list[dict[str, Any]]:
    """List the photos of all sources, in order, as Detectron2 dicts ``{"file_name": path}``.

    Args:
        sources: inputs of `read_image_list`: folders (with sub-folders), lists of paths, or COCO files, whose
            annotations are not read.

    Raises:
        InputError: a source without usable photos.
    """
    return [{"file_name": item.path} for source in sources for item in read_image_list(source)]


class PhotoStore:
    """Reads and downsizes photos, and caches the decoded ones up to a memory limit.

    Decoding dominates the cost of a small photo, and every epoch repeats it.
    """

    def __init__(self, side: int, megabytes: int):
        """
        Args:
            side: photos with a longer shorter side are downsized to it, in pixels; 0: never.
            megabytes: size of the cache of decoded photos, per reading process.
        """
        self._side = side
        self._cache = ArrayCache(megabytes)

    def __call__(self, path: str) -> np.ndarray:
        """Return the photo as (H, W, 3) uint8 RGB; do not modify it.

        Raises:
            BrokenSampleError: the photo cannot be read.
        """
        (image,) = self._cache.get(path, lambda: (_shrunk(read_photo({"file_name": path}), self._side),))
        return image


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    factor = side / min(height, width)
    if not 0 < factor < 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

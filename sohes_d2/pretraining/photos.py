"""Photos for pretraining from any number of folders, lists or COCO files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..data.sources import read_image_list
from ..data.training.labels import ArrayCache, read_photo


def list_photos(sources: Sequence[str]) -> list[dict[str, Any]]:
    """Detectron2 dicts ``{"file_name": path}`` of all sources, in their order.

    Args:
        sources: each as `read_image_list` takes it: a folder (with sub-folders), a list of paths, or a COCO file, whose
            annotations are not read.

    Raises:
        InputError: a source that names nothing usable.
    """
    return [{"file_name": item.path} for source in sources for item in read_image_list(source)]


class PhotoStore:
    """Reads photos, shrinks them, and keeps them decoded as long as there is room.

    Decoding costs more than all else that is done to a small photo, and every epoch needs it again.
    """

    def __init__(self, side: int, megabytes: int):
        """
        Args:
            side: pixels; photos whose shorter side is longer are shrunk to it; 0: none is.
            megabytes: of memory for decoded photos, in each process that reads them.
        """
        self._side = side
        self._cache = ArrayCache(megabytes)

    def __call__(self, path: str) -> np.ndarray:
        """The photo as (H, W, 3) uint8 RGB, not to be written to.

        Raises:
            InputError: it cannot be read.
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

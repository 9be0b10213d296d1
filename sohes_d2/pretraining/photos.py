"""Photos for pretraining from any number of folders, lists or COCO files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ..data.sources import read_image_list
from ..data.training.labels import BrokenSampleError
from ..structures.images import ImageReadError, read_image


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
        self._room = megabytes * 2**20
        self._kept: dict[str, np.ndarray] = {}

    def __call__(self, path: str) -> np.ndarray:
        """The photo as (H, W, 3) uint8 RGB, not to be written to.

        Raises:
            BrokenSampleError: it cannot be read.
        """
        image = self._kept.get(path)
        if image is None:
            try:
                image = _shrunk(read_image(path), self._side)
            except ImageReadError as error:
                raise BrokenSampleError(str(error)) from error
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._kept[path] = image
        return image


def _shrunk(image: np.ndarray, side: int) -> np.ndarray:
    height, width = image.shape[:2]
    factor = side / min(height, width)
    if not 0 < factor < 1:
        return image
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)

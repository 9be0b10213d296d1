"""Photos for pretraining, and random crops with their positions (multi-crop: Caron et al., SwAV, NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch

from detectron2.config import configurable

from ..data.sources import read_image_list
from ..data.training.labels import ArrayCache, read_photo
from ..data.training.views import StrongView

_ASPECTS = (3 / 4, 4 / 3)  # width over height of a crop before it is resized to a square
_ATTEMPTS = 20  # attempts to sample a second global crop that overlaps the first


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

    Without the cache, photos would be decoded again in every epoch, which is the main cost of small photos.
    """

    def __init__(self, side: int, megabytes: int):
        """
        Args:
            side: maximum length of the shorter side in pixels; larger photos are downsized to it; 0: no limit.
            megabytes: size of the cache of decoded photos, per process.
        """
        self._side = side
        self._cache = ArrayCache(megabytes)

    def __call__(self, path: str) -> np.ndarray:
        """Return the photo as (H, W, 3) uint8 RGB; it is cached and must not be modified.

        Raises:
            InputError: the file cannot be read.
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


class MultiCrop:
    """Maps a photo's record to two large ("global") and several small ("local") square views.

    The global views overlap. Randomness comes from numpy's global generator, which the stream seeds for each sample.
    """

    @configurable
    def __init__(
        self,
        *,
        read: Callable[[str], np.ndarray],
        global_size: int = 112,
        global_scale: Sequence[float] = (0.25, 1.0),
        local_count: int = 4,
        local_size: int = 64,
        local_scale: Sequence[float] = (0.05, 0.25),
        min_overlap: float = 0.2,
        appearance: StrongView | None = None,
    ):
        """
        Args:
            read: reads a path as (H, W, 3) uint8 RGB.
            global_size: side of the two global views in pixels.
            global_scale: smallest and largest area of a global view as a share of the photo.
            local_count: number of local views.
            local_size: side of a local view in pixels.
            local_scale: as ``global_scale``.
            min_overlap: minimum share of the smaller global view that the other one covers.
            appearance: colour augmentation of each view; None: none.

        Raises:
            ValueError: a share outside (0, 1] or in the wrong order.
        """
        for key, scale in (("GLOBAL_SCALE", global_scale), ("LOCAL_SCALE", local_scale)):
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f"PRETRAINING.VIEWS.{key} {list(scale)} is not [from, to] with 0 < from <= to <= 1.")
        self._read = read
        self.global_size, self.global_scale = global_size, tuple(global_scale)
        self.local_count, self.local_size, self.local_scale = local_count, local_size, tuple(local_scale)
        self.min_overlap = min_overlap
        self._appearance = appearance

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        views = cfg.PRETRAINING.VIEWS
        appearance = StrongView(
            jitter=views.JITTER,
            hue=views.HUE,
            jitter_probability=views.JITTER_PROBABILITY,
            grey_probability=views.GREY_PROBABILITY,
            blur_probability=views.BLUR_PROBABILITY,
            blur_sigma=views.BLUR_SIGMA,
            erase_probability=0.0,
        )
        return {
            "read": PhotoStore(cfg.PRETRAINING.STORED_SIDE, cfg.PRETRAINING.CACHE_MEGABYTES),
            "global_size": views.GLOBAL_SIZE,
            "global_scale": views.GLOBAL_SCALE,
            "local_count": views.LOCAL_COUNT,
            "local_size": views.LOCAL_SIZE,
            "local_scale": views.LOCAL_SCALE,
            "min_overlap": views.MIN_OVERLAP,
            "appearance": appearance,
        }

    def map_or_raise(self, record: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Read a photo and sample its views.

        Args:
            record: a dict with "file_name".

        Returns:
            "global": (2, 3, S, S) uint8; "local": (L, 3, s, s) uint8; "boxes": (2, 4) float32, the global views as
            (y0, x0, y1, x1) in pixels of the photo; "flips": (2,) bool, global views mirrored left to right.

        Raises:
            InputError: the photo cannot be read.
        """
        image = self._read(record["file_name"])
        rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002 (the stream seeds this generator)
        first = sample_box(image.shape[:2], self.global_scale, rng)
        boxes = [first, self._overlapping(first, image.shape[:2], rng)]
        local_boxes = [sample_box(image.shape[:2], self.local_scale, rng) for _ in range(self.local_count)]
        flips = rng.random(2 + self.local_count) < 0.5
        views = [self._view(image, box, self.global_size, flip, rng) for box, flip in zip(boxes, flips)]
        local = [self._view(image, box, self.local_size, flip, rng) for box, flip in zip(local_boxes, flips[2:])]
        return {
            "global": torch.stack(views),
            "local": torch.stack(local) if local else torch.zeros(0, 3, self.local_size, self.local_size).byte(),
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "flips": torch.tensor(flips[:2]),
        }

    __call__ = map_or_raise

    def _overlapping(self, first: Sequence[int], size: tuple[int, int], rng: np.random.Generator) -> Sequence[int]:
        """Sample a box that overlaps ``first``; ``first`` itself if all attempts fail."""
        for _ in range(_ATTEMPTS):
            box = sample_box(size, self.global_scale, rng)
            if overlap(first, box) >= self.min_overlap:
                return box
        return first

    def _view(
        self, image: np.ndarray, box: Sequence[int], size: int, flip: bool, rng: np.random.Generator
    ) -> torch.Tensor:
        y0, x0, y1, x1 = box
        shrinks = y1 - y0 >= size and x1 - x0 >= size
        crop = image[y0:y1, x0:x1, :]
        view = cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if flip:
            view = view[:, ::-1]
        if self._appearance is not None:
            view = self._appearance(view, rng)
        return torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1)))


def sample_box(size: tuple[int, int], scale: Sequence[float], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Sample a box (y0, x0, y1, x1) in an image of ``size`` (H, W) whose area is a share in ``scale`` of the image.

    Sides are clipped to the image, so the share may be smaller in a narrow photo.
    """
    area = rng.uniform(scale[0], scale[1]) * size[0] * size[1]
    aspect = np.exp(rng.uniform(*np.log(_ASPECTS)))
    height = int(np.clip(round(np.sqrt(area / aspect)), 1, size[0]))
    width = int(np.clip(round(np.sqrt(area * aspect)), 1, size[1]))
    y, x = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
    return y, x, y + height, x + width


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of the smaller of two boxes (y0, x0, y1, x1) that lies in the other."""
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(height, 0) * max(width, 0) / smaller

"""Read and validate the photo and the labels of one training image; masks stay encoded as run lengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from ...labels.forests import read_forest
from ...labels.schema import Problems, read_annotations
from ...structures.images import read_image
from ...structures.masks import mask_areas, mask_boxes
from ...structures.run_lengths import batch_run_lengths

# Ratio of areas within a bin; lengths differ by less than a factor of 2.
BIN_FACTOR = 4.0


class ArrayCache:
    """Cache of arrays by key, up to a memory limit, since every epoch reads the same data.

    Args:
        megabytes: memory limit, per process.
    """

    def __init__(self, megabytes: int):
        self._room = megabytes * 2**20
        self._kept: dict[str, tuple[np.ndarray, ...]] = {}

    def get(self, key: str, read: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Return the arrays of a key, calling ``read`` if they are not cached; do not modify them."""
        found = self._kept.get(key)
        if found is None:
            found = read()
            size = sum(array.nbytes for array in found)
            if size <= self._room:
                self._room -= size
                self._kept[key] = found
        return found


def read_photo(dataset_dict: Mapping[str, Any]) -> np.ndarray:
    """Read the image (H, W, 3) uint8 RGB of a Detectron2 dict.

    Raises:
        InputError: it cannot be read, or differs in size from its labels.
    """
    path = dataset_dict["file_name"]
    image = read_image(path)
    expected = tuple(dataset_dict.get(key, side) for key, side in zip(("height", "width"), image.shape))
    if image.shape[:2] != expected:
        raise InputError(
            f"the image {path!r} has size {image.shape[:2]}, its labels {expected} (height, width): it was replaced, "
            "resized or rotated after labeling. Restore it or label it again"
        )
    return image


def as_tensor(image: np.ndarray, image_format: str) -> torch.Tensor:
    """(3, H, W) uint8 of an RGB image (H, W, 3), in the channel order ``image_format``, "RGB" or "BGR"; a copy."""
    if image_format == "BGR":
        image = image[:, :, ::-1]
    # copied, since Pillow's array may not be writable
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


@dataclass
class TrainingLabels:
    """The usable labels of one training image.

    Attributes:
        run_ends: per mask, (K,) cumulative sum of the run lengths of its RLE.
        boxes: (N, 4) int64 (x, y, width, height), tight.
        areas: (N,) int64 in pixels.
        ancestors: (N, N) bool, ``[i, j]`` = i is a proper ancestor of j.
    """

    run_ends: list[np.ndarray]
    boxes: np.ndarray
    areas: np.ndarray
    ancestors: np.ndarray


def read_labels(
    annotations: Sequence[Mapping[str, Any]],
    image_size: tuple[int, int],
    min_score: float = 0.0,
    problems: Problems | None = None,
    where: str = "the image",
) -> TrainingLabels:
    """Read COCO annotations: polygons, compressed or uncompressed RLE, with optional `parent_id` and `score`.

    Ancestors are computed over all annotations before any is dropped, so that a grandparent remains an ancestor when
    the parent is dropped. Boxes and areas are computed from the masks. Invalid annotations are skipped.

    Args:
        annotations: annotations of one image.
        image_size: (H, W) of the image.
        min_score: labels with a lower score are dropped, as are crowds and empty masks.
        problems: collects invalid annotations.
        where: the image, for messages.

    Raises:
        InputError: ambiguous ids.
    """
    problems = Problems() if problems is None else problems
    records = read_annotations(annotations, problems, where)
    forest, _ = read_forest(records, image_size, problems, where)
    kept = np.flatnonzero(forest.scores >= min_score)
    masks = [forest.masks[k] for k in kept]
    runs: list[Any] = batch_run_lengths([mask["counts"] for mask in masks])  # no errors, since read_forest checks masks
    return TrainingLabels(
        run_ends=[np.cumsum(lengths) for lengths in runs],
        boxes=mask_boxes(masks).astype(np.int64),
        areas=mask_areas(masks),
        ancestors=forest.ancestors()[np.ix_(kept, kept)],
    )


def stratified_order(areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of masks in which every prefix is balanced over sizes.

    The masks are binned by the logarithm of their area, and each round takes one mask of every non-empty bin, in random
    order. So the first K masks contain all masks of rare sizes and a random sample of common ones.

    Args:
        areas: (N,) in pixels, positive.
        rng: random generator.

    Returns:
        (N,) int64, a permutation.
    """
    areas = np.asarray(areas, np.float64)
    bins = np.floor(np.log(areas) / np.log(BIN_FACTOR)).astype(np.int64)
    shuffled = rng.permutation(len(areas))
    rounds = np.zeros(len(areas), np.int64)
    for value in np.unique(bins):
        members = shuffled[bins[shuffled] == value]
        rounds[members] = np.arange(len(members))
    # within a round, the shuffled order: random and independent of size
    return shuffled[np.argsort(rounds[shuffled], kind="stable")]

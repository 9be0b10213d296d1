"""Photo and labels of one training image: checked, the labels with all ancestors and still encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ...labels.forests import read_forest
from ...labels.schema import Problems, read_annotations
from ...structures.images import read_image
from ...structures.masks import mask_areas, mask_boxes
from ...structures.run_lengths import batch_run_lengths


class ArrayCache:
    """Arrays by a key, kept while memory allows: what is read once is needed again in every epoch.

    Args:
        megabytes: of memory, in each process that reads.
    """

    def __init__(self, megabytes: int):
        self._room = megabytes * 2**20
        self._kept: dict[str, tuple[np.ndarray, ...]] = {}

    def get(self, key: str, read: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """The arrays of a key, not to be written to; ``read`` is called for those that are not kept."""
        found = self._kept.get(key)
        if found is None:
            found = read()
            size = sum(array.nbytes for array in found)
            if size <= self._room:
                self._room -= size
                self._kept[key] = found
        return found


def read_photo(dataset_dict: Mapping[str, Any]) -> np.ndarray:
    """The image (H, W, 3) uint8 RGB of a Detectron2 dict.

    Raises:
        InputError: it cannot be read, or its size is not that of its labels.
    """
    path = dataset_dict["file_name"]
    image = read_image(path)
    expected = tuple(dataset_dict.get(key, side) for key, side in zip(("height", "width"), image.shape))
    if image.shape[:2] != expected:
        raise InputError(
            f"the image {path!r} has size {image.shape[:2]}, its labels {expected} (height, width): it was replaced, "
            "resized or turned after it was labelled. Restore it or label it again"
        )
    return image


@dataclass
class TrainingLabels:
    """The labels of one image that may be trained on.

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
    """Read COCO annotations: polygons, compressed or uncompressed RLE, with `parent_id` and `score` if they have any.

    The ancestors are taken over all annotations before any is left out, so that a grandparent stays an ancestor when
    the parent goes. Boxes and areas are those of the masks; what the annotations say of them is not read. What is wrong
    costs the annotation that it is about.

    Args:
        annotations: of one image.
        image_size: (H, W) of the image.
        min_score: labels with a lower one are left out, as are crowds and empty masks.
        problems: collects what is left out because it is wrong.
        where: the image, for these messages.

    Raises:
        InputError: ids that are ambiguous.
    """
    problems = Problems() if problems is None else problems
    records = read_annotations(annotations, problems, where)
    forest, _ = read_forest(records, image_size, problems, where)
    kept = np.flatnonzero(forest.scores >= min_score)
    masks = [forest.masks[k] for k in kept]
    runs: list[Any] = batch_run_lengths([mask["counts"] for mask in masks])  # no errors: the masks are checked
    return TrainingLabels(
        run_ends=[np.cumsum(lengths) for lengths in runs],
        boxes=mask_boxes(masks).astype(np.int64),
        areas=mask_areas(masks),
        ancestors=forest.ancestors()[np.ix_(kept, kept)],
    )


# Areas of one bin differ by less than this factor: lengths by less than 2.
BIN_FACTOR = 4.0


def stratified_order(areas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of masks of which any beginning is spread evenly over sizes.

    The masks are binned by the logarithm of their area, and the bins take turns, in an order that is drawn anew every
    round; a bin that is used up sits out. So the first K hold all masks of rare sizes and a random sample of the
    common ones.

    Args:
        areas: (N,) in pixels, positive.
        rng: the only source of chance.

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
    # within a round, the order of the shuffle: random, and independent of the sizes
    return shuffled[np.argsort(rounds[shuffled], kind="stable")]

"""The labels of one image as training needs them: checked, with all ancestors, and not yet decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..structures.forest import Forest
from ..structures.masks import mask_boxes
from ..structures.rle_check import run_lengths


class BrokenSampleError(ValueError):
    """An image or its labels cannot be used; the message names the file, what is wrong and what to do."""


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
    annotations: Sequence[Mapping[str, Any]], image_size: tuple[int, int], min_score: float = 0.0
) -> TrainingLabels:
    """Read COCO annotations: polygons, compressed or uncompressed RLE, with `parent_id` and `score` if they have any.

    The ancestors are taken over all annotations before any is left out, so that a grandparent stays an ancestor when
    the parent goes. Boxes and areas are those of the masks; what the annotations say of them is not read.

    Args:
        annotations: of one image.
        image_size: (H, W) of the image.
        min_score: labels with a lower one are left out, as are crowds and empty masks.

    Raises:
        ValueError: an annotation that is none, or a parent that is not there.
    """
    annotations = _with_ids(annotations)
    for annotation in annotations:
        _check_segmentation(annotation)
    try:
        forest = Forest.from_coco(annotations, image_size)
    except (KeyError, TypeError, OverflowError) as error:  # of the json: a string for a number, ...
        raise ValueError(f"an annotation is malformed ({type(error).__name__}: {error})") from error
    ancestors = forest.ancestors()
    kept, runs = [], []
    for k, annotation in enumerate(annotations):
        if annotation.get("iscrowd") or forest.scores[k] < min_score:
            continue
        lengths = _runs(forest, k, annotation["id"])
        if lengths[1::2].any():
            kept.append(k)
            runs.append(lengths)
    return TrainingLabels(
        run_ends=[np.cumsum(lengths) for lengths in runs],
        boxes=mask_boxes([forest.masks[k] for k in kept]).astype(np.int64),
        areas=np.array([lengths[1::2].sum() for lengths in runs], np.int64),
        ancestors=ancestors[np.ix_(kept, kept)],
    )


def _with_ids(annotations: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Number the annotations where none has an id: Detectron2 does not ask for them, and nobody's parent is lost."""
    if any("id" in annotation or annotation.get("parent_id") for annotation in annotations):
        missing = [k for k, annotation in enumerate(annotations) if "id" not in annotation]
        if missing:
            raise ValueError(f"annotation number {missing[0]} has no `id`, which others or a `parent_id` need")
        return list(annotations)
    return [{**annotation, "id": k + 1} for k, annotation in enumerate(annotations)]


def _check_segmentation(annotation: Mapping[str, Any]) -> None:
    """Refuse what pycocotools takes for something else: it reads a "polygon" of two points as a box."""
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        raise ValueError(f"annotation {annotation['id']} has no `segmentation`")
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if not isinstance(polygon, (list, np.ndarray)) or len(polygon) < 6 or len(polygon) % 2:
                raise ValueError(
                    f"annotation {annotation['id']} has a polygon that is not a flat list of at least three x, y pairs"
                )


def _runs(forest: Forest, index: int, annotation_id: int) -> np.ndarray:
    """(K,) run lengths of one mask, which must tile the image: pycocotools may read past the end of others."""
    try:
        lengths = run_lengths(forest.masks[index]["counts"])
    except ValueError as error:
        raise ValueError(f"the RLE of annotation {annotation_id} is damaged: {error}") from error
    height, width = forest.image_size
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"the runs of the RLE of annotation {annotation_id} do not add up to {height} x {width}")
    return lengths

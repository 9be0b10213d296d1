"""Forests from annotations; unusable annotations are skipped and reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import RecordError
from ..structures.forest import NO_LEVEL, NO_PARENT, Forest
from ..structures.hierarchy import depths_of
from ..structures.masks import RLE, encode_runs, mask_areas, rles_from_coco
from .schema import Annotation, Problems, annotation_place, read_score

CIRCLE = "cycle of parents"  # a reason of `Problems`
_LARGEST_SCORE = 1e30  # within the range of float32
_LARGEST_LEVEL = 2**31


def read_forest(
    annotations: Sequence[Annotation], size: tuple[int, int], problems: Problems, where: str
) -> tuple[Forest, list[int]]:
    """Build the forest of an image from its usable masks, without crowd regions.

    Children of skipped masks are linked to their nearest kept ancestor. A mask whose parent is missing becomes a whole;
    if the parents form a cycle, all masks do. A score that is not a number is replaced by 0.

    Args:
        annotations: annotations of one image, with unique ids.
        size: (H, W) of the image.
        problems: collects skipped annotations.
        where: the image, for messages; may be empty.

    Returns:
        The forest, and for each of its masks the index of its annotation.
    """
    masks = read_masks(annotations, size, problems, where)
    kept = [k for k, mask in enumerate(masks) if mask is not None and not annotations[k]["iscrowd"]]
    return link(annotations, masks, size, problems, where).subset(np.array(kept, np.int64)), kept


def read_masks(
    annotations: Sequence[Annotation], size: tuple[int, int], problems: Problems, where: str
) -> list[RLE | None]:
    """The mask of each annotation; None if it is empty or unusable, which is added to ``problems``."""
    masks: list[RLE | None] = [None] * len(annotations)
    checked: list[Any] = rles_from_coco([annotation.get("segmentation") for annotation in annotations], size)
    areas = iter(mask_areas([rle for rle in checked if not isinstance(rle, RecordError)]))
    for k, rle in enumerate(checked):
        if isinstance(rle, RecordError):
            problems.add(annotation_place(annotations[k], k, where), rle)
        elif not next(areas):
            problems.add(annotation_place(annotations[k], k, where), RecordError("the mask is empty", "empty mask"))
        else:
            masks[k] = rle
    return masks


def link(
    annotations: Sequence[Annotation],
    masks: Sequence[RLE | None],
    size: tuple[int, int],
    problems: Problems,
    where: str,
    scores: Sequence[float] | None = None,
) -> Forest:
    """Build the forest of all annotations of an image, including crowd regions and annotations without mask (empty).

    If the parents form a cycle, all masks are wholes, and the reason `CIRCLE` is added to ``problems``.

    Args:
        annotations: annotations of one image, with unique ids.
        masks: the mask of each annotation.
        size: (H, W) of the image.
        problems: collects errors.
        where: the image, for messages; may be empty.
        scores: scores of the masks; by default those of the annotations, 0 for a score that is not a number.
    """
    if scores is None:
        scores = [0.0] * len(annotations)
        for k, annotation in enumerate(annotations):
            with problems.at(annotation_place(annotation, k, where), "taken as 0"):
                scores[k] = min(max(read_score(annotation), -_LARGEST_SCORE), _LARGEST_SCORE)
    parents = find_parents(annotations, problems, where)
    try:
        depths_of(np.array(parents, np.int64))
    except ValueError as error:
        problems.add(where, RecordError(str(error), CIRCLE), "its parent_ids are not used")
        parents = [NO_PARENT] * len(parents)
    empty = encode_runs([size[0] * size[1]], size)
    return Forest(
        [empty if mask is None else mask for mask in masks],
        parents,
        size,
        scores=scores,
        levels=[_level(annotation) for annotation in annotations],
        sources=[str(annotation.get("source", ""))[:80] for annotation in annotations],
    )


def find_parents(annotations: Sequence[Annotation], problems: Problems, where: str) -> list[int]:
    """Index of each annotation's parent; NO_PARENT for a whole and for a missing parent, which is reported."""
    index = {annotation.get("id"): k for k, annotation in enumerate(annotations)}
    parents = [index.get(annotation.get("parent_id") or None, NO_PARENT) for annotation in annotations]
    for k, annotation in enumerate(annotations):
        if parents[k] == NO_PARENT and annotation.get("parent_id", 0) != 0:
            reason = f"it names the parent {annotation['parent_id']!r:.40}, which its image lacks"
            problems.add(
                annotation_place(annotation, k, where), RecordError(reason, "missing parent"), "taken as a whole"
            )
    return parents


def _level(annotation: Annotation) -> int:
    level = annotation.get("level", NO_LEVEL)
    return level if type(level) is int and abs(level) < _LARGEST_LEVEL else NO_LEVEL

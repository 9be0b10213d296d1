"""From the annotations of an image to its forest: what is wrong costs the mask that it is about, and is noted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..structures.forest import NO_LEVEL, NO_PARENT, Forest, ForestError
from ..structures.masks import RLE, MaskError, encode_runs, mask_areas, rle_from_coco
from .reader import annotation_place
from .schema import Annotation, Problems, RecordError, read_score

_LARGEST_SCORE = 1e30  # what single precision and every page can hold
_LARGEST_LEVEL = 2**31


def read_forest(
    annotations: Sequence[Annotation], size: tuple[int, int], problems: Problems, where: str
) -> tuple[Forest, list[int]]:
    """The forest of the masks of an image that can be used, without crowd regions.

    Children of what is left out go to the next ancestor. A mask whose parent is not there is a whole, as are all where
    the parents run in a circle; a score that is no number is taken as 0.

    Args:
        annotations: of one image, with ids that differ.
        size: (H, W) of the image.
        problems: is told what is left out.
        where: the image, for messages; may be empty.

    Returns:
        The forest, and for each of its masks the index of its annotation.
    """
    masks = read_masks(annotations, size, problems, where)
    kept = [k for k, mask in enumerate(masks) if mask is not None and not annotations[k]["iscrowd"]]
    try:
        forest = link(annotations, masks, size, problems, where)
    except ForestError as error:
        problems.add(where, RecordError(f"{error}; all its masks are taken as wholes", "circle of parents"))
        annotations = [{**annotation, "parent_id": 0} for annotation in annotations]
        forest = link(annotations, masks, size, Problems(), where)
    return forest.subset(np.array(kept, np.int64)), kept


def read_masks(
    annotations: Sequence[Annotation], size: tuple[int, int], problems: Problems, where: str
) -> list[RLE | None]:
    """The mask of each annotation; None for one that is empty or cannot be used, of which ``problems`` is told."""
    masks: list[RLE | None] = []
    for k, annotation in enumerate(annotations):
        try:
            mask = rle_from_coco(annotation.get("segmentation"), size)
            if not mask_areas([mask])[0]:
                raise MaskError("the mask is empty", "empty mask")
            masks.append(mask)
        except MaskError as error:
            masks.append(None)
            problems.add(_place(where, annotation, k), error)
    return masks


def link(
    annotations: Sequence[Annotation],
    masks: Sequence[RLE | None],
    size: tuple[int, int],
    problems: Problems,
    where: str,
) -> Forest:
    """The forest of all annotations of an image, crowd regions and those without a mask, which get an empty one, too.

    Raises:
        ForestError: the parents run in a circle.
    """
    scores = []
    for k, annotation in enumerate(annotations):
        try:
            score = read_score(annotation)
        except RecordError as error:
            error = RecordError(f"{error}; taken as 0", error.reason)
            problems.add(_place(where, annotation, k), error)
            score = 0.0
        scores.append(min(max(score, -_LARGEST_SCORE), _LARGEST_SCORE))
    parents, lost = find_parents(annotations)
    for k in lost:
        reason = f"it names the parent {annotations[k]['parent_id']!r:.40}, which its image lacks; taken as a whole"
        problems.add(_place(where, annotations[k], k), RecordError(reason, "missing parent"))
    empty = encode_runs([size[0] * size[1]], size)
    forest = Forest(
        [empty if mask is None else mask for mask in masks],
        parents,
        size,
        scores=scores,
        levels=[_level(annotation) for annotation in annotations],
        sources=[str(annotation.get("source", ""))[:80] for annotation in annotations],
    )
    forest.depths()
    return forest


def find_parents(annotations: Sequence[Annotation]) -> tuple[list[int], list[int]]:
    """Index of each annotation's parent or -1, and the indices of those whose parent is not among them."""
    index = {annotation.get("id"): k for k, annotation in enumerate(annotations)}
    parents = [index.get(annotation.get("parent_id") or None, NO_PARENT) for annotation in annotations]
    lost = [
        k for k, annotation in enumerate(annotations) if parents[k] == NO_PARENT and annotation.get("parent_id", 0) != 0
    ]
    return parents, lost


def _place(where: str, annotation: Annotation, index: int) -> str:
    place = annotation_place(annotation, index)
    return f"{where}, {place}" if where else place


def _level(annotation: Annotation) -> int:
    level = annotation.get("level", NO_LEVEL)
    return level if type(level) is int and abs(level) < _LARGEST_LEVEL else NO_LEVEL

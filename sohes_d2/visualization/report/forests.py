"""The forest of one image of a file: every sound mask, in the order in which a page paints them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...structures.forest import NO_PARENT, Forest, ForestError
from ...structures.masks import RLE, encode_window, mask_areas, rle_from_coco
from ...structures.rle_check import check_rle
from ..colors import canonical_order
from .label_file import LabelFile

THETA_COVER = 0.9  # where a file has no parents, as in the labels of the first phase


@dataclass
class ImageForest:
    """Masks of one image.

    Attributes:
        forest: from large to small masks.
        annotations: the record of each mask.
        problems: what could not be used as it is, and what was done instead.
        crowds: crowd regions, which are no entities and are left out.
        by_coverage: whether the parents were read off the masks, for lack of usable ones in the file.
    """

    forest: Forest
    annotations: list[dict[str, Any]]
    problems: list[str] = field(default_factory=list)
    crowds: int = 0
    by_coverage: bool = False


def image_forest(
    file: LabelFile,
    image_id: Any,
    size: tuple[int, int],
    score_threshold: float | None = None,
    max_masks: int = 0,
) -> ImageForest:
    """The forest of an image. A broken mask is left out and its children go to the next ancestor.

    Args:
        file: the labels.
        image_id: of the image, in that file.
        size: (H, W) of the image.
        score_threshold: masks of lower score are left out; None takes all.
        max_masks: at most so many of the best scores are taken; 0 takes all.
    """
    everything = file.of(image_id)
    annotations = [a for a in everything if not a.get("iscrowd")]
    problems: list[str] = []
    masks = [_mask(a, size, problems) for a in annotations]
    scores = [_score(a, problems) for a in annotations]
    keep = np.array([m is not None for m in masks], bool)
    if score_threshold is not None:
        keep &= np.array(scores) >= score_threshold
    if max_masks and keep.sum() > max_masks:
        best = np.argsort(-np.where(keep, scores, -np.inf), kind="stable")[:max_masks]
        keep = np.isin(np.arange(len(keep)), best)
    by_coverage = not file.has_hierarchy
    forest = None
    if not by_coverage:
        empty = encode_window(np.zeros((0, 0), bool), (0, 0), size)  # only the links of left-out masks are read
        try:
            parents = _parents(annotations, everything, problems)
            forest = Forest([m or empty for m in masks], parents, size, scores).subset(keep)
        except ForestError as error:
            problems.append(f"{error}; the hierarchy is read off the masks instead")
            by_coverage = True
    kept = np.flatnonzero(keep)
    if forest is None:
        chosen = [masks[k] for k in kept]
        forest = Forest.from_masks(chosen, size, THETA_COVER, scores=[scores[k] for k in kept])
    order = canonical_order(forest, range(len(forest)))
    return ImageForest(
        forest.subset(np.array(order, np.int64)),
        [annotations[kept[k]] for k in order],
        problems,
        len(everything) - len(annotations),
        by_coverage,
    )


def _mask(annotation: dict[str, Any], size: tuple[int, int], problems: list[str]) -> RLE | None:
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, list):
            _check_polygons(segmentation, size)
        elif isinstance(segmentation, dict) and isinstance(segmentation.get("counts"), list):
            _check_plain_counts(segmentation["counts"], size)
        rle = rle_from_coco(segmentation, size)
        if not isinstance(segmentation, list):
            check_rle(rle)
        if not mask_areas([rle])[0]:
            raise ValueError("the mask is empty")
    except Exception as error:  # pycocotools raises plain exceptions and nearly anything else on malformed input
        problems.append(f"mask {annotation.get('id', 'without id')!r} is left out: {error}")
        return None
    return rle


def _check_polygons(polygons: Sequence[Any], size: tuple[int, int]) -> None:
    # pycocotools draws whatever it is given, at a cost of memory that grows with the coordinates.
    reach = 2 * max(size)
    for polygon in polygons:
        values = np.asarray(polygon, np.float64)
        if values.ndim != 1 or len(values) < 6 or len(values) % 2:
            raise ValueError("a polygon must be a flat list of at least three x, y pairs")
        if not (np.abs(values) <= reach).all():
            raise ValueError("a polygon lies far outside its image")


def _check_plain_counts(counts: Sequence[Any], size: tuple[int, int]) -> None:
    runs = np.asarray(counts, np.int64)
    if runs.sum() != size[0] * size[1] or (runs < 0).any():
        raise ValueError(f"the runs of the RLE do not add up to the {size[0]} x {size[1]} pixels of its image")


def _score(annotation: dict[str, Any], problems: list[str]) -> float:
    score = annotation.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        problems.append(f"mask {annotation.get('id', 'without id')!r} has the score {score!r}; taken as 0")
        return 0.0
    return float(score)


def _parents(annotations: list[dict[str, Any]], everything: list[dict[str, Any]], problems: list[str]) -> list[int]:
    """Index of each annotation's parent. A crowd region as parent counts as none."""
    index: dict[Any, int] = {}
    for k, annotation in enumerate(annotations):
        key = annotation.get("id")
        if not isinstance(key, (int, str)) or key in index:
            raise ForestError(f"two masks have the id {key!r}" if key in index else "a mask has no id")
        index[key] = k
    crowds = {a.get("id") for a in everything if a.get("iscrowd") and isinstance(a.get("id"), (int, str))}
    parents = []
    for annotation in annotations:
        parent_id = annotation.get("parent_id") or 0
        known = isinstance(parent_id, (int, str)) and parent_id in index
        if parent_id and not known and not (isinstance(parent_id, (int, str)) and parent_id in crowds):
            problems.append(
                f"mask {annotation['id']!r} names the parent {parent_id!r}, which its image lacks; shown as a whole"
            )
        parents.append(index[parent_id] if parent_id and known else NO_PARENT)
    return parents

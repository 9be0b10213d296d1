"""Labels of a report: files with distinct names, their forests in drawing order, matches of two files, and metrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Union

import msgspec
import numpy as np

from ..errors import InputError
from ..labels import reader
from ..labels.forests import CIRCLE, read_forest
from ..labels.reader import LabelFile
from ..labels.schema import Problems
from ..labels.writer import read_json
from ..structures.forest import Forest
from ..structures.masks import RLE, iou_matrix
from ..visualization.colors import canonical_order

THETA_COVER = 0.9  # for files without parents, as in phase 1
MATCH_IOU = 0.5  # minimum IoU of matching masks of two files


def read_label_file(path: str | Path, results_allowed: bool = False) -> LabelFile:
    """Read a COCO data set, or with ``results_allowed`` a COCO result list.

    Raises:
        InputError: the file cannot be read, is not json, or is not one of these.
    """
    file = LabelFile.read(path, results_allowed=results_allowed)
    if not file.images and not file.is_result_list:
        raise InputError(f"{path} has no images, so there is nothing to show")
    if len(file.categories) == 1:  # a single class, such as "entity", carries no information
        file.categories = {}
    return file


def names_of(files: Sequence[LabelFile]) -> list[str]:
    """File names, with as many parent folders as needed to be unique: "a/labels.json" and "b/labels.json"."""
    parts = [Path(file.path).parts for file in files]
    names: list[str] = []
    for count in range(1, max(map(len, parts)) + 1):
        names = [Path(*of_file[-count:]).as_posix() for of_file in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


@dataclass
class ImageForest:
    """Masks of one image.

    Attributes:
        forest: from large to small masks.
        annotations: the record of each mask.
        problems: messages about invalid records and how they were handled.
        crowds: number of skipped crowd regions.
        by_coverage: whether parents were computed from the masks because the file has no usable ones.
    """

    forest: Forest
    annotations: list[dict[str, Any]]
    problems: list[str]
    crowds: int
    by_coverage: bool


def image_forest(
    file: LabelFile,
    image_id: Any,
    size: tuple[int, int],
    score_threshold: float | None = None,
    max_masks: int = 0,
) -> ImageForest:
    """Read the forest of an image. Invalid masks are skipped; their children move to the next ancestor.

    Args:
        file: the labels.
        image_id: id of the image in that file.
        size: (H, W) of the image.
        score_threshold: masks with a lower score are dropped; None: keep all.
        max_masks: number of best-scored masks to keep; 0: all.
    """
    annotations = file.by_image.get(image_id, [])
    problems = Problems()
    forest, kept = read_forest(annotations, size, problems, "")
    by_coverage = not file.has_hierarchy or CIRCLE in problems.counts
    keep = np.arange(len(forest))
    if score_threshold is not None:
        keep = np.flatnonzero(forest.scores >= score_threshold)
    if max_masks and len(keep) > max_masks:
        keep = np.sort(keep[np.argsort(-forest.scores[keep], kind="stable")[:max_masks]])
    forest = forest.subset(keep)
    if by_coverage:
        forest = Forest.from_masks(forest.masks, size, THETA_COVER, scores=forest.scores)
    order = np.array(canonical_order(forest, range(len(forest))), np.int64)
    return ImageForest(
        forest.subset(order),
        [annotations[kept[k]] for k in keep[order]],
        problems.items,
        sum(annotation["iscrowd"] for annotation in annotations),
        by_coverage,
    )


def match_masks(a: Sequence[RLE], b: Sequence[RLE], min_iou: float = MATCH_IOU) -> list[tuple[int, int, float]]:
    """Greedy one-to-one matching by descending IoU, down to ``min_iou``.

    Returns:
        Pairs (index in ``a``, index in ``b``, IoU), best first.
    """
    overlaps = iou_matrix(a, b)
    rows, columns = np.nonzero(overlaps >= min_iou)
    pairs, used_rows, used_columns = [], set(), set()
    for k in np.argsort(-overlaps[rows, columns], kind="stable"):
        i, j = int(rows[k]), int(columns[k])
        if i not in used_rows and j not in used_columns:
            used_rows.add(i)
            used_columns.add(j)
            pairs.append((i, j, float(overlaps[i, j])))
    return pairs


def match_images(file: LabelFile, other: LabelFile) -> dict[Any, Any]:
    """Map image ids of ``file`` to those of ``other``, or to None if ``other`` has no such image.

    Matches by file name, or by base name if that matches more images and is unique in both files. Ids are compared only
    if a file has no names, such as a result list, since every tool numbers its images from 1.
    """
    try:
        return reader.match_images(file, other)[0]
    except InputError:  # ambiguous, for example duplicate names: no matches
        return dict.fromkeys(file.images)


_Metric = Union[float, None, list[list[float]]]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read groups of metrics for the page.

    Args:
        path: a file with a json object of numbers, null (undefined) and matrices; names may have a group before a slash
            ("segm/AR@1000"), or be in nested objects.

    Returns:
        Per group ``title``, ``rows`` of [name, number or None], and ``matrices`` of [name, rows of numbers].

    Raises:
        InputError: the file is missing, not json, or has no numbers.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: metrics must be a json object of names and numbers")
    groups: dict[str, dict[str, Any]] = {}
    for name, value in _flatten(content, ""):
        title, _, short = name.rpartition("/")
        group = groups.setdefault(title, {"title": title, "rows": [], "matrices": []})
        try:
            found = msgspec.convert(value, _Metric)
        except msgspec.ValidationError:
            continue
        if not isinstance(found, list):
            group["rows"].append([short, found if found is not None and math.isfinite(found) else None])
        elif found and all(map(math.isfinite, chain(*found))):
            group["matrices"].append([short, found])
    result = [group for group in groups.values() if group["rows"] or group["matrices"]]
    if not result:
        raise InputError(f"{path} has no numbers; pass the file written by sohes evaluate --output")
    return result


def _flatten(content: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs

"""Label files of a report, with distinct display names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from ..labels import matching, reader
from ..labels.writer import read_json
from ..structures.masks import RLE, iou_matrix


@dataclass
class LabelFile(reader.LabelFile):
    """A label file whose display name includes ``folders`` of its parent folders."""

    folders: int = 0

    @property
    def name(self) -> str:
        """The file name with ``folders`` parent folders."""
        parts = Path(self.path).parts
        return Path(*parts[-1 - self.folders :]).as_posix()


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


def named_apart(files: Sequence[LabelFile]) -> list[LabelFile]:
    """The same files with distinct display names if their paths differ: "a/labels.json" and "b/labels.json"."""
    longest = max(len(Path(file.path).parts) for file in files)
    for folders in range(longest):
        named = [replace(file, folders=min(folders, len(Path(file.path).parts) - 1)) for file in files]
        if len({file.name for file in named}) == len(files):
            return named
    return list(files)


MATCH_IOU = 0.5


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
    """Map image ids of ``file`` to those of ``other``, or None if it has no such image.

    By file name, or by base name if that matches more images and is unique in both files. Ids are compared only if a
    file has no names, such as a result list, since every tool counts its images from 1.
    """
    try:
        return matching.match_images(file, other)[0]
    except matching.RepeatedNameError:
        return dict.fromkeys(file.images)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Read groups of metrics for the page.

    Args:
        path: a json object of numbers, null (undefined) and matrices; names may have a group before a slash
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
        if _is_matrix(value):
            group["matrices"].append([short, value])
        elif value is None or _is_number(value):
            group["rows"].append([short, value if value is None or math.isfinite(value) else None])
    result = [group for group in groups.values() if group["rows"] or group["matrices"]]
    if not result:
        raise InputError(f"{path} has no numbers; pass the file written by sohes evaluate --output")
    return result


def _flatten(content: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and all(_is_number(v) and math.isfinite(v) for v in row) for row in value)
    )

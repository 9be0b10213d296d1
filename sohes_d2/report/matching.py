"""Matching of two label files: images by name, masks by overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..labels import matching
from ..structures.masks import RLE, iou_matrix
from .label_file import LabelFile

MATCH_IOU = 0.5


def match_masks(a: Sequence[RLE], b: Sequence[RLE], min_iou: float = MATCH_IOU) -> list[tuple[int, int, float]]:
    """Pairs (index in ``a``, index in ``b``, IoU), best first; each mask is in one pair at most.

    The pair of the highest IoU is taken first, then the highest of the rest, down to ``min_iou``.
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
    """Image id of ``file`` -> that of ``other``, or None where it has no such image.

    By file name, or by its last part where that finds more and is unique in both files. Only where a file has no names,
    such as a list of results, do equal ids mean the same image: every tool counts its images from 1.
    """
    try:
        return matching.match_images(file, other)[0]
    except matching.RepeatedNameError:
        return dict.fromkeys(file.images)

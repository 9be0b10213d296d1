"""Forest of one image of a label file, in drawing order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..labels.forests import CIRCLE, read_forest
from ..labels.schema import Problems
from ..structures.forest import Forest
from ..visualization.colors import canonical_order
from .label_file import LabelFile

THETA_COVER = 0.9  # for files without parents, as in phase 1


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

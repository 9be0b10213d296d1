"""Fusion of a trained model's masks with those of the merge trees of phase 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..structures.forest import Forest
from ..structures.masks import iou_matrix
from ..structures.nms import without_duplicates

MASK_SOURCES = ("queries", "trees", "both")


@dataclass(frozen=True)
class Fusion:
    """Combines the masks of the model's queries and of the merge trees by NMS [D].

    Tree masks keep their scores. A query mask gets the score ``factor`` * max(score * IoU) over all tree masks, since
    tree scores rank masks better than query scores do. Duplicates are then removed by NMS, so that queries only add
    masks that the trees lack. The hierarchy is computed from the coverage of the masks.

    Attributes:
        factor: multiplies the scores of query masks; in [0, 1].
        nms_threshold: of two masks with a higher IoU, the lower-scored one is removed; in (0, 1].
        max_masks: maximum number of masks per photo; the best-scored are kept.
        min_score: masks with a lower score are removed; in [0, 1].
        theta_cover, max_child_area: see `Forest.from_masks`.
    """

    factor: float = 0.5
    nms_threshold: float = 0.95
    max_masks: int = 1000
    min_score: float = 0.0
    theta_cover: float = 0.9
    max_child_area: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ConfigError(f"TEST.FUSION.FACTOR must be in [0, 1], got {self.factor}")
        if not 0 < self.nms_threshold <= 1:
            raise ConfigError(f"TEST.FUSION.NMS_THRESHOLD must be in (0, 1], got {self.nms_threshold}")

    @classmethod
    def from_config(cls, cfg: Any) -> Fusion:
        """Read ``cfg.TEST`` and ``cfg.MODEL.ANCESTOR_HEAD``.

        Raises:
            ConfigError: a setting out of range.
        """
        return cls(
            cfg.TEST.FUSION.FACTOR,
            cfg.TEST.FUSION.NMS_THRESHOLD,
            cfg.TEST.DETECTIONS_PER_IMAGE,
            cfg.TEST.MIN_SCORE,
            cfg.TEST.THETA_COVER,
            cfg.MODEL.ANCESTOR_HEAD.MAX_CHILD_AREA,
        )

    def __call__(self, trees: Forest, queries: Forest) -> Forest:
        """Return the combined forest of one photo, by descending score."""
        masks = [*trees.masks, *queries.masks]
        ratings = np.asarray(trees.scores)[:, None] * iou_matrix(trees.masks, queries.masks)
        scores = np.concatenate([trees.scores, self.factor * ratings.max(0, initial=0)])
        best = without_duplicates(masks, scores, self.nms_threshold)[: self.max_masks]
        kept = best[scores[best] >= self.min_score].tolist()
        sources = [*trees.sources, *queries.sources]
        return Forest.from_masks(
            [masks[k] for k in kept],
            trees.image_size,
            self.theta_cover,
            self.max_child_area,
            scores=scores[kept].astype(np.float32),
            sources=[sources[k] for k in kept],
        )

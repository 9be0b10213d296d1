"""Score that ranks the labels: an estimate of how likely a region is an entity, made without annotations.

    raw = separation * surround ** SURROUND_POWER * contrast * agreement ** AGREEMENT_POWER
    rank = raw * (1 - REDUNDANCY * overlap ** REDUNDANCY_POWER)
    score = FLOOR * rank / (rank + TAIL) + (1 - FLOOR) * rank ** SLOPE / (rank ** SLOPE + MIDPOINT ** SLOPE)

- separation, (1 - similarity) / (2 + lambda): dissimilarity to the most similar neighbour when the region was absorbed;
- surround: the same, as the mean over all neighbours when the region was made, weighted by border length;
- contrast, e / (e + i + noise): border strength along its outline (e) relative to that over its pixels (i);
- agreement: the mean best IoU with the regions of the other looks; with a refiner, the IoU before and after it;
- overlap: the best IoU with a region of higher rank.

The last line is calibrated without labels: it is the share of regions of that rank that are found again (IoU of at
least 0.75) when the photo is mirrored, recoloured and reduced (tools/calibrate_scores.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from .merge_tree import MergeTree
from .proposals import Proposal
from .regions import STRENGTH_UNIT


@dataclass(frozen=True)
class EntityScorer:
    """The formula above [D]. All values were chosen on training photos; those of the last line without labels.

    Attributes:
        noise: border strength in [0, 1) below which the contrast is damped.
        surround_power: exponent of the surround; 0 ignores it.
        agreement_power: exponent of the agreement; 0 ignores it.
        redundancy: share of its raw score that a region loses if it equals a better one; less for smaller overlaps.
        redundancy_power: exponent of the IoU with the best such region.
        floor: share of weak regions that are found again.
        tail: rank at which half of that share is reached; it keeps the scores of weak regions in order.
        midpoint: rank at which the share is halfway between the floor and 1.
        slope: steepness of the share at the midpoint, over the logarithm of the rank.
    """

    noise: float = 0.1
    surround_power: float = 0.5
    agreement_power: float = 0.5
    redundancy: float = 0.3
    redundancy_power: float = 6.0
    floor: float = 0.37
    tail: float = 0.01
    midpoint: float = 0.14
    slope: float = 11.2

    def tree(self, tree: MergeTree, border_weight: float) -> np.ndarray:
        """(K,) float64 products of separation, surround and contrast for all nodes of a tree.

        Args:
            tree: merge tree of one look.
            border_weight: border weight of its merging.
        """
        return self._product(tree.separation, tree.surround, tree.border, tree.inside, border_weight)

    def _product(self, separation: Any, surround: Any, border: Any, inside: Any, border_weight: float) -> Any:
        separation, surround = (np.clip(value / (2 + border_weight), 0, 1) for value in (separation, surround))
        return separation * surround**self.surround_power * border / (border + inside + self.noise)

    def raw(self, values: Sequence[float] | np.ndarray, agreement: Sequence[float] | np.ndarray) -> np.ndarray:
        """(M,) float64 raw scores from (M,) values of `tree` or `proposal` and (M,) agreement in [0, 1]."""
        return np.asarray(values, np.float64) * np.asarray(agreement, np.float64) ** self.agreement_power

    def calibrated(self, ranks: np.ndarray) -> np.ndarray:
        """(M,) float32 scores in [0, 1] from (M,) raw scores or ranks."""
        ranks = np.maximum(np.asarray(ranks, np.float64), 0)
        powered = ranks**self.slope
        strong = powered / (powered + self.midpoint**self.slope)
        return (self.floor * ranks / (ranks + self.tail) + (1 - self.floor) * strong).astype(np.float32)

    def remaining(self, overlap: np.ndarray) -> np.ndarray:
        """(M,) float64 share of the raw score that remains at a best IoU (M,) with better regions."""
        return 1 - self.redundancy * np.asarray(overlap, np.float64) ** self.redundancy_power

    def proposal(self, proposal: Proposal, strength: np.ndarray, border_weight: float) -> float:
        """Product of separation, surround and contrast of a refined mask, whose outline differs from its node's.

        Args:
            proposal: after refinement.
            strength: (H, W) int32 of `border_strength` of the image.
            border_weight: border weight of its tree.
        """
        grown = proposal.grown(1, strength.shape)
        mask = grown.mask.view(np.uint8)
        kernel = np.ones((3, 3), np.uint8)
        # Beyond the image, pixels count as inside for the erosion and as outside for the dilation, so that the border
        # of the image is not part of the outline.
        inner = cv2.erode(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=1).view(bool)
        outline = cv2.dilate(mask, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0).view(bool) & ~inner
        values = strength[grown.window]
        border = float(values[outline].mean()) / STRENGTH_UNIT if outline.any() else 0.0
        inside = float(values[inner].mean()) / STRENGTH_UNIT if inner.any() else border
        return self._product(proposal.separation, proposal.surround, border, inside, border_weight)

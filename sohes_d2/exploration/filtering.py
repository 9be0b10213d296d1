"""Which proposals are worth refining, and which refined masks are worth a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..structures.duplicates import without_duplicates
from ..structures.masks import RLE
from .proposals import Proposal


@dataclass(frozen=True)
class MaskFilter:
    """Which masks are worth a label.

    Attributes:
        min_area: in pixels [HASSOD, UnSAM: 100].
        max_area: as a share of the image [HASSOD, UnSAM: 0.9].
        corners: a mask that covers this many of the image's four corners is background; 0 keeps it [HASSOD: 3].
        min_agreement: IoU of the mask before and after refinement [HASSOD, UnSAM: 0.5].
        duplicate_iou: of two masks that overlap by more than this IoU, the lower score goes [UnSAM: 0.9].
        max_candidates: at most so many are refined and scored, the most separated from their surroundings first: what
            bounds the time on a large photo, where the closer looks find tens of thousands.
        max_masks: the best by score stay.
    """

    min_area: int = 100
    max_area: float = 0.9
    corners: int = 0
    min_agreement: float = 0.5
    duplicate_iou: float = 0.9
    max_candidates: int = 4000
    max_masks: int = 1000

    def candidates(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The proposals worth refining, in their given order."""
        deaths = np.asarray([proposal.death for proposal in proposals])
        chosen = np.sort(np.argsort(deaths, kind="stable")[: self.max_candidates])
        return [proposals[k] for k in chosen]

    def accepts(self, proposal: Proposal, image_size: tuple[int, int]) -> bool:
        """Whether a refined proposal passes on its own."""
        height, width = image_size
        if not self.min_area <= proposal.area <= self.max_area * height * width:
            return False
        if proposal.agreement < self.min_agreement:
            return False
        return not (self.corners and _corners(proposal, image_size) >= self.corners)

    def best(self, masks: Sequence[RLE], scores: np.ndarray) -> np.ndarray:
        """Indices of the best masks, by falling score, no two of which are duplicates."""
        return without_duplicates(masks, scores, self.duplicate_iou)[: self.max_masks]


def _corners(proposal: Proposal, image_size: tuple[int, int]) -> int:
    """How many of the image's corners a mask covers."""
    y0, x0, y1, x1 = proposal.box
    count = 0
    for y in {0, image_size[0] - 1}:
        for x in {0, image_size[1] - 1}:
            if y0 <= y < y1 and x0 <= x < x1:
                count += bool(proposal.mask[y - y0, x - x0])
    return count

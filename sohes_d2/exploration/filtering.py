"""Selection of the proposals to refine, and of the refined masks that become labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..structures.masks import RLE
from ..structures.nms import without_duplicates
from .merge_tree import MergeTree
from .overlaps import Candidates
from .proposals import Proposal


@dataclass(frozen=True)
class MaskFilter:
    """Criteria by which masks become labels.

    Attributes:
        min_area: in pixels [HASSOD, UnSAM: 100].
        max_area_ratio: as a share of the image [HASSOD, UnSAM: 0.9].
        corners: a mask that covers this many of the image's four corners is background; 0 keeps it [HASSOD: 3].
        min_agreement: IoU of the mask before and after refinement [HASSOD, UnSAM: 0.5].
        nms_threshold: of two masks that overlap by more than this IoU, the lower-scored one is removed [UnSAM: 0.9].
        max_candidates: maximum number compared and scored: of a tree, the best by separation and contrast; of masks
            to refine, the most separated.
        max_masks: maximum number kept, best scores first.
    """

    min_area: int = 100
    max_area_ratio: float = 0.9
    corners: int = 0
    min_agreement: float = 0.5
    nms_threshold: float = 0.95
    max_candidates: int = 1500
    max_masks: int = 1000

    def candidates(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """Select the proposals to refine, in their given order."""
        separations = np.asarray([proposal.separation for proposal in proposals])
        chosen = np.sort(np.argsort(-separations, kind="stable")[: self.max_candidates])
        return [proposals[k] for k in chosen]

    def nodes(self, tree: MergeTree, values: np.ndarray, levels: np.ndarray, photo_pixels: int) -> np.ndarray:
        """Candidate nodes of a tree, ascending.

        Args:
            tree: of the photo at the size at which it is clustered.
            values: (K,) separation times contrast.
            levels: (K,) of `MergeTree.levels`; nodes of level -1 are skipped.
            photo_pixels: pixels of the photo at its full size, to which ``min_area`` refers.
        """
        pixels = tree.labels.size
        wanted = (levels >= 0) & (tree.area * (photo_pixels / pixels) >= self.min_area)
        wanted &= tree.area <= self.max_area_ratio * pixels
        if self.corners:
            height, width = tree.labels.shape
            places = tree.positions()
            corners = {(y, x) for y in (0, height - 1) for x in (0, width - 1)}
            at = np.asarray([places[tree.labels[corner]] for corner in corners])
            covered = ((tree.first[:, None] <= at) & (at < tree.last[:, None])).sum(axis=1)
            wanted &= covered < self.corners
        nodes = np.flatnonzero(wanted)
        best = np.argsort(-values[nodes], kind="stable")[: self.max_candidates]
        return np.sort(nodes[best])

    def accepts(self, proposal: Proposal, image_size: tuple[int, int], scale: float = 1.0) -> bool:
        """Whether a refined proposal passes on its own, in an image that has ``scale`` times the photo's pixels."""
        height, width = image_size
        if not self.min_area * scale <= proposal.area <= self.max_area_ratio * height * width:
            return False
        if proposal.agreement < self.min_agreement:
            return False
        return not (self.corners and _corners(proposal, image_size) >= self.corners)

    def best_candidates(
        self, candidates: Candidates, raw: np.ndarray, remaining: Callable[[np.ndarray], np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose the best nodes of all trees greedily, without duplicates.

        Args:
            candidates: M nodes.
            raw: (M,) raw scores, not negative.
            remaining: the share of its raw score that a candidate keeps, from its IoU with the better ones (M,).

        Returns:
            (n,) int64 indices by descending rank, and (n,) float64 ranks: the remaining raw scores.
        """
        left = np.array(raw, np.float64)
        overlap = np.zeros(len(candidates), np.float32)
        keep: list[int] = []
        ranks: list[float] = []
        while len(keep) < self.max_masks and len(left):
            k = int(np.argmax(left))
            if left[k] < 0:
                break
            keep.append(k)
            ranks.append(left[k])
            row = candidates.row(k)
            closer = np.flatnonzero((row > overlap) & (left >= 0))
            overlap[closer] = row[closer]
            left[closer] = raw[closer] * remaining(row[closer])
            left[closer[row[closer] > self.nms_threshold]] = -1
            left[k] = -1
        return np.asarray(keep, np.int64), np.asarray(ranks)

    def best(self, masks: Sequence[RLE], scores: np.ndarray) -> np.ndarray:
        """Indices of the best masks, by descending score, without duplicates."""
        return without_duplicates(masks, scores, self.nms_threshold)[: self.max_masks]


def _corners(proposal: Proposal, image_size: tuple[int, int]) -> int:
    """Number of image corners that a mask covers."""
    y0, x0, y1, x1 = proposal.box
    count = 0
    for y in {0, image_size[0] - 1}:
        for x in {0, image_size[1] - 1}:
            if y0 <= y < y1 and x0 <= x < x1:
                count += bool(proposal.mask[y - y0, x - x0])
    return count

"""Mask proposals: the candidates for labels that clustering produces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .merge_tree import MergeTree

Box = tuple[int, int, int, int]  # (y0, x0, y1, x1) in pixels, ends exclusive


@dataclass(frozen=True)
class Proposal:
    """One candidate mask, cropped to a window to save memory on large photos.

    Attributes:
        box: (y0, x0, y1, x1) of the window in the image, in pixels.
        mask: (y1 - y0, x1 - x0) bool.
        birth, death: priorities at which the region was made and absorbed, birth >= death.
        level: index of the first threshold whose snapshot contains it.
        source: "global", or "local" from a zoomed crop.
        cell: side of a feature cell in image pixels, the resolution of the mask's outline.
        separation: in [0, 2], 1 - similarity to the region with which it was merged.
        surround: in [0, 2], the mean of 1 - similarity to all its neighbours.
        agreement: IoU in [0, 1] of the mask before and after refinement.
    """

    box: Box
    mask: np.ndarray
    birth: float
    death: float
    level: int
    source: str
    cell: float
    separation: float
    surround: float = 1.0
    agreement: float = 1.0

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.mask))

    def trimmed(self) -> Proposal:
        """The same mask in its tight box."""
        rows, cols = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return self
        y, x, (y0, x0) = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1), self.box[:2]
        box = (int(y0 + y.start), int(x0 + x.start), int(y0 + y.stop), int(x0 + x.stop))
        return replace(self, box=box, mask=self.mask[y, x])


def proposals_from_tree(
    tree: MergeTree,
    levels: np.ndarray,
    origin: tuple[int, int],
    cell: float,
    min_area: float,
    max_area: float,
    source: str = "global",
) -> list[Proposal]:
    """Nodes of a tree that are present at a threshold, as masks in pixels.

    Args:
        tree: of a photo or a crop.
        levels: (K,) from `MergeTree.levels`; nodes of level -1 are skipped.
        origin: (y, x) of the tree's first pixel in the photo.
        cell: side of a feature cell in pixels.
        min_area, max_area: bounds of the area in pixels; other nodes are skipped.
        source: of the proposals.

    Returns:
        Proposals by ascending level, within a level by their first leaf.
    """
    nodes = np.flatnonzero((levels >= 0) & (min_area <= tree.area) & (tree.area <= max_area) & (tree.area > 0))
    lowest = np.asarray([tree.order[tree.first[k] : tree.last[k]].min() for k in nodes], np.int64)
    proposals = []
    for node in nodes[np.lexsort((lowest, levels[nodes]))]:
        y0, x0, y1, x1 = (int(v) for v in tree.box[node])
        proposals.append(
            Proposal(
                box=(origin[0] + y0, origin[1] + x0, origin[0] + y1, origin[1] + x1),
                mask=tree.mask(node),
                birth=float(tree.birth[node]),
                death=float(tree.death[node]),
                level=int(levels[node]),
                source=source,
                cell=cell,
                separation=float(tree.separation[node]),
                surround=float(tree.surround[node]),
            )
        )
    return proposals


def coverage_by(proposal: Proposal, other: Proposal) -> float:
    """Share of a proposal's pixels that lie inside another one."""
    y0, x0 = max(proposal.box[0], other.box[0]), max(proposal.box[1], other.box[1])
    y1, x1 = min(proposal.box[2], other.box[2]), min(proposal.box[3], other.box[3])
    if y0 >= y1 or x0 >= x1:
        return 0.0
    shared = _part(proposal, (y0, x0, y1, x1)) & _part(other, (y0, x0, y1, x1))
    return float(np.count_nonzero(shared)) / max(1, proposal.area)


def _part(proposal: Proposal, box: Sequence[int]) -> np.ndarray:
    y, x = proposal.box[:2]
    return proposal.mask[box[0] - y : box[2] - y, box[1] - x : box[3] - x]

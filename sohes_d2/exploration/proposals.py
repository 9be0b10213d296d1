"""Candidate masks in pixels: what stands between the clustering and the label file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from .merging import Regions

Box = tuple[int, int, int, int]  # (y0, x0, y1, x1) in pixels, ends exclusive


@dataclass(frozen=True)
class Proposal:
    """One candidate, held as its window so that a thousand of them cost little on a large photo.

    Attributes:
        box: (y0, x0, y1, x1) of the window in the image, in pixels.
        mask: (y1 - y0, x1 - x0) bool.
        birth, death: similarities at which the clustering made and absorbed the region, birth >= death.
        level: index of the first threshold at which it stands.
        source: "global", or "local" from a zoomed crop.
        cell: side of a feature cell in image pixels: how coarse the mask's edge is.
        agreement: IoU in [0, 1] of the mask before and after refinement.
    """

    box: Box
    mask: np.ndarray
    birth: float
    death: float
    level: int
    source: str
    cell: float
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


def proposals_from_regions(
    regions: Regions, frame: Box, min_area: float, max_area: float, source: str = "global"
) -> list[Proposal]:
    """The distinct regions of all snapshots, as masks in pixels.

    Args:
        regions: of the clustering.
        frame: the part of the image that the grid tiles, (y0, x0, y1, x1) in pixels.
        min_area, max_area: bounds of the area in pixels; others are left out.
        source: for the proposals.

    Returns:
        Proposals in the order of the regions.
    """
    y0, x0, y1, x1 = frame
    rows, cols = regions.labels.shape[1:]
    # The cell under the centre of each pixel, which is what nearest-neighbour upsampling of the grid means.
    row_of = ((np.arange(y1 - y0) + 0.5) * rows / (y1 - y0)).astype(np.int64)
    col_of = ((np.arange(x1 - x0) + 0.5) * cols / (x1 - x0)).astype(np.int64)
    pixels = np.outer(np.bincount(row_of, minlength=rows), np.bincount(col_of, minlength=cols))
    first_row, first_col = np.searchsorted(row_of, np.arange(rows + 1)), np.searchsorted(col_of, np.arange(cols + 1))
    cell = max((y1 - y0) / rows, (x1 - x0) / cols)
    proposals = []
    for level in np.unique(regions.first):
        labels = regions.labels[level]
        areas = np.bincount(labels.ravel(), weights=pixels.ravel(), minlength=rows * cols)[regions.ids]
        new = np.flatnonzero((regions.first == level) & (min_area <= areas) & (areas <= max_area))
        compact = np.zeros(rows * cols, np.int32)
        compact[regions.ids[new]] = np.arange(1, len(new) + 1)  # find_objects takes 0 for background
        compact = compact[labels]
        for name, (region, window) in enumerate(zip(new, ndimage.find_objects(compact, len(new))), start=1):
            r, c = window
            top, bottom = first_row[r.start], first_row[r.stop]
            left, right = first_col[c.start], first_col[c.stop]
            mask = (compact[window] == name)[row_of[top:bottom] - r.start][:, col_of[left:right] - c.start]
            proposals.append(
                Proposal(
                    box=(int(y0 + top), int(x0 + left), int(y0 + bottom), int(x0 + right)),
                    mask=mask,
                    birth=float(regions.birth[region]),
                    death=float(regions.death[region]),
                    level=int(level),
                    source=source,
                    cell=cell,
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

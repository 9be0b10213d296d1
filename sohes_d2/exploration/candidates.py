"""Candidate masks of a photo: their overlaps, and the criteria by which they become labels.

Overlaps of nodes of one or several merge trees are computed without decoding masks.

The leaves of a node are an interval of its tree's depth-first order. Two nodes of one tree are nested or disjoint.
Between trees, the number of shared pixels is looked up in a summed-area table: the number of pixels before position p
of one order and before position q of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..structures.masks import RLE
from ..structures.nms import without_duplicates
from .merge_tree import MergeTree
from .proposals import Proposal


class Candidates:
    """Selected nodes of several merge trees of one photo, and their overlaps.

    Attributes:
        tree: (M,) int64 index of each candidate's tree.
        node: (M,) int64 node in it.
        area: (M,) int64 pixels.
    """

    def __init__(self, trees: Sequence[MergeTree], nodes: Sequence[np.ndarray]):
        """Candidates in the order of the trees; ``nodes[t]`` are nodes of ``trees[t]``."""
        self.trees = list(trees)
        self.tree = np.repeat(np.arange(len(trees)), [len(n) for n in nodes])
        self.node = np.concatenate([np.asarray(n, np.int64) for n in nodes])
        ends = np.cumsum([len(n) for n in nodes]).tolist()
        self._parts = [slice(end - len(n), end) for n, end in zip(nodes, ends)]  # the candidates of each tree
        self.area = np.concatenate([tree.area[self.node[part]] for tree, part in zip(trees, self._parts)])
        # Lookups need only the interval ends of candidates, so each tree's order is binned at these.
        self._low, self._high = np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        bins, counts = [], []
        for tree, part in zip(trees, self._parts):
            first, last = tree.first[self.node[part]], tree.last[self.node[part]]
            cut = np.unique(np.concatenate([[0, tree.leaves], first, last]))
            self._low[part], self._high[part] = np.searchsorted(cut, first), np.searchsorted(cut, last)
            bins.append((np.searchsorted(cut, tree.positions(), side="right") - 1)[tree.labels].ravel())
            counts.append(len(cut) - 1)
        self._areas = [np.concatenate([[0], np.cumsum(np.bincount(b, minlength=c))]) for b, c in zip(bins, counts)]
        self._tables = {}
        for x, y in combinations(range(len(trees)), 2):
            self._tables[x, y] = _table(bins[x], counts[x], bins[y], counts[y])
            self._tables[y, x] = self._tables[x, y].T

    def __len__(self) -> int:
        return len(self.node)

    def intersections(self, index: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n, m) int64 pixels that candidates (n,) share with others (m,); each list is from one tree."""
        if not len(index) or not len(others):
            return np.zeros((len(index), len(others)), np.int64)
        x, y = int(self.tree[index[0]]), int(self.tree[others[0]])
        low, high = self._low[index], self._high[index]
        other_low, other_high = self._low[others], self._high[others]
        if x == y:
            start, end = np.maximum(low[:, None], other_low), np.minimum(high[:, None], other_high)
            return self._areas[x][np.maximum(start, end)] - self._areas[x][start]
        rows = self._tables[x, y][high] - self._tables[x, y][low]
        return (rows[:, other_high] - rows[:, other_low]).astype(np.int64)

    def row(self, candidate: int) -> np.ndarray:
        """(M,) float32 IoU of one candidate with all."""
        low, high, own = self._low[candidate], self._high[candidate], int(self.tree[candidate])
        shared = np.empty(len(self), np.int64)
        for t, part in enumerate(self._parts):
            other_low, other_high = self._low[part], self._high[part]
            if t == own:
                start, end = np.maximum(low, other_low), np.minimum(high, other_high)
                shared[part] = self._areas[t][np.maximum(start, end)] - self._areas[t][start]
            else:
                before = self._tables[own, t][high] - self._tables[own, t][low]
                shared[part] = before[other_high] - before[other_low]
        return (shared / (self.area[candidate] + self.area - shared)).astype(np.float32)

    def agreement(self, block: int = 256) -> np.ndarray:
        """(M,) float64 best IoU with the candidates of each other tree, averaged over them; 1 with a single tree."""
        if len(self.trees) < 2:
            return np.ones(len(self))
        total = np.zeros(len(self))
        for own, other in combinations([np.arange(len(self))[part] for part in self._parts], 2):
            best, best_of_other = np.zeros(len(own)), np.zeros(len(other))
            for start in range(0, len(own) if len(other) else 0, block):
                some = slice(start, start + block)
                shared = self.intersections(own[some], other)
                iou = shared / (self.area[own[some]][:, None] + self.area[other] - shared)
                best[some] = iou.max(axis=1)
                np.maximum(best_of_other, iou.max(axis=0), out=best_of_other)
            total[own] += best
            total[other] += best_of_other
        return total / (len(self.trees) - 1)

    def coverage(self, index: np.ndarray) -> np.ndarray:
        """(n, n) float64; [i, j] is the share of candidate ``index[i]`` that lies inside candidate ``index[j]``."""
        shared = np.zeros((len(index), len(index)))
        members = [np.flatnonzero(self.tree[index] == t) for t in range(len(self.trees))]
        for own in members:
            for other in members:
                shared[np.ix_(own, other)] = self.intersections(index[own], index[other])
        return shared / self.area[index][:, None]


def _table(a: np.ndarray, count_a: int, b: np.ndarray, count_b: int) -> np.ndarray:
    """Summed-area table (count_a + 1, count_b + 1) int32 of pixels, from the bins of each pixel in two trees."""
    table = np.zeros((count_a + 1, count_b + 1), np.int32)
    joint = np.bincount(a.astype(np.int64) * count_b + b, minlength=count_a * count_b)
    table[1:, 1:] = joint.reshape(count_a, count_b)
    np.cumsum(table, axis=0, out=table)
    np.cumsum(table, axis=1, out=table)
    return table


@dataclass(frozen=True)
class MaskFilter:
    """Criteria by which masks become labels.

    Attributes:
        min_area: minimum area in pixels [HASSOD, UnSAM: 100].
        max_area_ratio: maximum area as a share of the image [HASSOD, UnSAM: 0.9].
        corners: a mask that covers this many of the image's four corners is background; 0 keeps it [HASSOD: 3].
        min_agreement: IoU of the mask before and after refinement [HASSOD, UnSAM: 0.5].
        nms_threshold: of two masks that overlap by more than this IoU, the lower-scored one is removed [UnSAM: 0.9].
        max_candidates: maximum number of nodes per tree, the best by `EntityScorer.tree`, or of masks to refine, the
            best by separation.
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
            values: (K,) from `EntityScorer.tree`.
            levels: (K,) from `MergeTree.levels`; nodes of level -1 are skipped.
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
        """Whether a refined proposal passes all criteria but NMS; the image has ``scale`` times the photo's pixels."""
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
            remaining: maps the best IoUs with better candidates to the shares of the raw scores that are kept.

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

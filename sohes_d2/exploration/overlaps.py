"""Overlaps of nodes of one or several merge trees of one photo, computed without decoding masks.

The leaves of a node are an interval of its tree's depth-first order. Two nodes of one tree are nested or disjoint.
Between trees, the number of shared pixels is looked up in a summed-area table: the number of pixels before position p
of one order and before position q of the other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .merge_tree import MergeTree


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
        self.node = np.concatenate([np.asarray(n, np.int64) for n in nodes]) if len(nodes) else np.zeros(0, np.int64)
        self._bounds = np.concatenate([[0], np.cumsum([len(n) for n in nodes])]).astype(np.int64)
        self.area = self._take("area")
        # Only the ends of candidates matter, so each tree's order is binned at these.
        cuts, self._low, self._high = [], np.zeros(len(self), np.int64), np.zeros(len(self), np.int64)
        for t, tree in enumerate(self.trees):
            part = self.of_tree(t)
            first, last = tree.first[self.node[part]], tree.last[self.node[part]]
            cut = np.unique(np.concatenate([[0, tree.leaves], first, last]))
            self._low[part], self._high[part] = np.searchsorted(cut, first), np.searchsorted(cut, last)
            cuts.append(cut)
        bins = [
            (np.searchsorted(cut, tree.positions(), side="right") - 1)[tree.labels].ravel()
            for tree, cut in zip(self.trees, cuts)
        ]
        counts = [len(cut) - 1 for cut in cuts]
        self._areas = [np.concatenate([[0], np.cumsum(np.bincount(b, minlength=c))]) for b, c in zip(bins, counts)]
        self._tables = {
            (x, y): _table(bins[x], counts[x], bins[y], counts[y])
            for x in range(len(self.trees))
            for y in range(x + 1, len(self.trees))
        }

    def __len__(self) -> int:
        return len(self.node)

    def _take(self, name: str) -> np.ndarray:
        parts = [getattr(tree, name)[self.node[self.of_tree(t)]] for t, tree in enumerate(self.trees)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def of_tree(self, t: int) -> slice:
        """The candidates of one tree."""
        return slice(int(self._bounds[t]), int(self._bounds[t + 1]))

    def intersections(self, index: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(n, m) int64 pixels that candidates (n,) share with others (m,); each of the two lists is of one tree."""
        if not len(index) or not len(others):
            return np.zeros((len(index), len(others)), np.int64)
        x, y = int(self.tree[index[0]]), int(self.tree[others[0]])
        low, high = self._low[index], self._high[index]
        other_low, other_high = self._low[others], self._high[others]
        if x == y:
            start, end = np.maximum(low[:, None], other_low), np.minimum(high[:, None], other_high)
            return self._areas[x][np.maximum(start, end)] - self._areas[x][start]
        table = self._tables[x, y] if x < y else self._tables[y, x].T
        rows = table[high] - table[low]
        return (rows[:, other_high] - rows[:, other_low]).astype(np.int64)

    def row(self, candidate: int) -> np.ndarray:
        """(M,) float32 IoU of one candidate with all."""
        low, high, own = self._low[candidate], self._high[candidate], int(self.tree[candidate])
        shared = np.empty(len(self), np.int64)
        for t in range(len(self.trees)):
            part = self.of_tree(t)
            other_low, other_high = self._low[part], self._high[part]
            if t == own:
                start, end = np.maximum(low, other_low), np.minimum(high, other_high)
                shared[part] = self._areas[t][np.maximum(start, end)] - self._areas[t][start]
            else:
                table = self._tables[min(own, t), max(own, t)]
                before = table[high] - table[low] if own < t else table[:, high] - table[:, low]
                shared[part] = before[other_high] - before[other_low]
        return (shared / (self.area[candidate] + self.area - shared)).astype(np.float32)

    def agreement(self, block: int = 256) -> np.ndarray:
        """(M,) float64 best IoU with the candidates of each other tree, averaged over these; 1 if there is one tree."""
        if len(self.trees) < 2:
            return np.ones(len(self))
        total = np.zeros(len(self))
        parts = [np.arange(len(self))[self.of_tree(t)] for t in range(len(self.trees))]
        for x, own in enumerate(parts):
            for y in range(x + 1, len(parts)):
                best_x, best_y = np.zeros(len(own)), np.zeros(len(parts[y]))
                for start in range(0, len(own) if len(parts[y]) else 0, block):
                    some = slice(start, start + block)
                    shared = self.intersections(own[some], parts[y])
                    iou = shared / (self.area[own[some]][:, None] + self.area[parts[y]] - shared)
                    best_x[some] = iou.max(axis=1)
                    np.maximum(best_y, iou.max(axis=0), out=best_y)
                total[own] += best_x
                total[parts[y]] += best_y
        return total / (len(self.trees) - 1)

    def coverage(self, index: np.ndarray) -> np.ndarray:
        """(n, n) float64 share of each candidate of ``index`` (n,) that lies inside each other."""
        shared = np.zeros((len(index), len(index)))
        members = [np.flatnonzero(self.tree[index] == t) for t in range(len(self.trees))]
        for own in members:
            for other in members:
                shared[np.ix_(own, other)] = self.intersections(index[own], index[other])
        return shared / self.area[index][:, None]


def _table(a: np.ndarray, count_a: int, b: np.ndarray, count_b: int) -> np.ndarray:
    """(count_a + 1, count_b + 1) int32 pixels before each pair of bins, from the bins of each pixel in two trees."""
    table = np.zeros((count_a + 1, count_b + 1), np.int32)
    joint = np.bincount(a.astype(np.int64) * count_b + b, minlength=count_a * count_b)
    table[1:, 1:] = joint.reshape(count_a, count_b)
    np.cumsum(table, axis=0, out=table)
    np.cumsum(table, axis=1, out=table)
    return table

"""The merge tree of one look at a photo: the leaves and every region made by greedy merging, stored in arrays.

Node ``k < N`` is leaf ``k``; node ``N + m`` is the result of merge ``m``, so that children precede their parents and
the last node is the whole photo. In depth-first order the leaves of a node are contiguous: nesting, overlaps and masks
are computed from intervals of that order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ..structures.masks import RLE, encode_intervals
from .merging import MergeHistory, numba
from .regions import STRENGTH_UNIT, RegionGraph, resize_labels


class MergeTree:
    """Arrays over K = 2N - 1 nodes.

    Attributes:
        labels: (H, W) int32, the leaf of each pixel.
        children: (N - 1, 2) int64 nodes; row m holds those of node ``N + m``.
        parents: (K,) int64; -1 for the last node.
        birth, death: (K,) float32, priorities at which a node was made and absorbed, as running minima of the merge
            sequence, so that birth >= death. Leaves have birth 1; the last node has death min(-1, lowest priority).
        separation: (K,) float32, 1 - similarity of the merge that absorbed the node: the distance to its most
            similar neighbour; for the last node, the largest of the tree.
        surround: (K,) float32, mean of 1 - similarity to all neighbours when the node was made, by border length; for a
            leaf, its separation.
        area: (K,) int64 pixels.
        box: (K, 4) int64 (y0, x0, y1, x1), ends exclusive; empty for a leaf without pixels.
        border: (K,) float64, mean border strength in [0, 1) along the outline, excluding the photo's edge; 0 if there
            is no other outline.
        inside: (K,) float64, mean border strength in [0, 1) over the pixels.
        order: (N,) int64, the leaves in depth-first order.
        first, last: (K,) int64, the node's leaves are ``order[first:last]``.
    """

    def __init__(self, labels: np.ndarray, graph: RegionGraph, history: MergeHistory, strength: np.ndarray):
        """Build the tree of a merge sequence.

        Args:
            labels: (H, W) int32 leaves.
            graph: region graph of the leaves, before merging.
            history: returned by `merge_regions`.
            strength: (H, W) int32 from `border_strength`.
        """
        leaves = history.leaves
        self.labels = labels
        self.children = _children(leaves, history.kept.astype(np.int64), history.absorbed.astype(np.int64))
        nodes = leaves + len(self.children)
        self.parents = np.full(nodes, -1)
        self.parents[self.children.ravel()] = np.repeat(np.arange(leaves, nodes), 2)
        made = np.concatenate([np.ones(leaves, np.float32), np.minimum.accumulate(history.priority)])
        above = self.parents[:-1]
        self.birth = made
        self.death = np.append(made[above], min(np.float32(-1), made.min()))
        unlike = 1 - history.similarity
        self.separation = np.append(unlike[above - leaves], unlike.max(initial=1.0)).astype(np.float32)
        self.surround = np.concatenate([self.separation[:leaves], history.surround]).astype(np.float32)
        flat = labels.ravel()
        self.area = np.zeros(nodes, np.int64)
        self.area[:leaves] = np.bincount(flat, minlength=leaves)
        sums = np.zeros((nodes, 3), np.int64)  # border length, border strength, strength inside
        sums[:leaves, 0], sums[:leaves, 1] = graph.perimeters()
        sums[:leaves, 2] = np.bincount(flat, weights=strength.ravel(), minlength=leaves)
        self.box = np.zeros((nodes, 4), np.int64)
        self.box[:leaves] = _boxes(labels, leaves)
        _accumulate(self.children, self.area, sums, self.box, history.length, history.strength)
        length, outer, inner = sums[:, 0], sums[:, 1] / STRENGTH_UNIT, sums[:, 2] / STRENGTH_UNIT
        self.border = outer / np.maximum(length, 1)
        self.inside = inner / np.maximum(self.area, 1)
        self.order, self.first, self.last = _depth_first(self.children, leaves)

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def leaves(self) -> int:
        """Number of leaves."""
        return len(self.order)

    def levels(self, thetas: Sequence[float]) -> np.ndarray:
        """(K,) int64 index of the first threshold whose snapshot contains a node; -1 for none.

        A snapshot is taken when the best priority first falls below a threshold; it contains the nodes made before
        and absorbed after that (SOHES section 3.1).

        Args:
            thetas: descending.
        """
        negative = -np.asarray(thetas, np.float32)
        # made before the snapshot: birth >= theta; absorbed after it: death < theta
        first = np.searchsorted(negative, -self.birth, side="left")
        end = np.searchsorted(negative, -self.death, side="left")
        first[: self.leaves] = 0
        end[-1] = len(thetas)
        return np.where(first < end, first, -1)

    def positions(self) -> np.ndarray:
        """(N,) int64 position of each leaf in depth-first order."""
        places = np.empty(self.leaves, np.int64)
        places[self.order] = np.arange(self.leaves)
        return places

    def mask(self, node: int) -> np.ndarray:
        """(h, w) bool mask of a node in its box."""
        y0, x0, y1, x1 = self.box[node]
        member = np.zeros(self.leaves, bool)
        member[self.order[self.first[node] : self.last[node]]] = True
        return member[self.labels[y0:y1, x0:x1]]

    def encode(self, nodes: Sequence[int] | np.ndarray, size: tuple[int, int]) -> list[RLE]:
        """RLE masks of some nodes, computed from the run lengths of the label map.

        Args:
            nodes: indices.
            size: (H, W) of the masks; labels of another size are resized by nearest neighbour.
        """
        columns = resize_labels(self.labels.T, size[::-1]).ravel()  # RLE is column-major
        starts = np.flatnonzero(np.concatenate([[True], columns[1:] != columns[:-1]]))
        ends = np.append(starts[1:], columns.size)
        place = self.positions()[columns[starts]]
        by_place = np.argsort(place, kind="stable")
        place = place[by_place]
        masks = []
        for node in nodes:
            low, high = np.searchsorted(place, (self.first[node], self.last[node]))
            runs = np.sort(by_place[low:high])
            masks.append(encode_intervals(starts[runs], ends[runs], size))
        return masks


def _boxes(labels: np.ndarray, leaves: int) -> np.ndarray:
    """(N, 4) int64 boxes (y0, x0, y1, x1) of the leaves; zeros for leaves without pixels."""
    nothing = slice(0, 0), slice(0, 0)
    windows = [window or nothing for window in ndimage.find_objects(labels + 1, leaves)]
    return np.array([(y.start, x.start, y.stop, x.stop) for y, x in windows], np.int64)


def _plain_children(leaves, kept, absorbed):
    """(M, 2) nodes joined by each merge; a region id refers to its newest node."""
    node = np.arange(leaves)
    children = np.empty((len(kept), 2), np.int64)
    for m in range(len(kept)):
        children[m, 0], children[m, 1] = node[kept[m]], node[absorbed[m]]
        node[kept[m]] = leaves + m
    return children


def _plain_accumulate(children, area, sums, box, length, strength):
    """Sum areas and borders and join boxes from the leaves up, in place; merged borders leave the outline."""
    leaves = len(area) - len(children)
    for m in range(len(children)):
        i, j, k = children[m, 0], children[m, 1], leaves + m
        area[k] = area[i] + area[j]
        for c in range(3):
            sums[k, c] = sums[i, c] + sums[j, c]
        sums[k, 0] -= 2 * length[m]
        sums[k, 1] -= 2 * strength[m]
        for low in range(2):
            if area[i] == 0 or area[j] == 0:  # ignore the zero box of an empty node
                full = j if area[i] == 0 else i
                box[k, low], box[k, low + 2] = box[full, low], box[full, low + 2]
            else:
                box[k, low] = min(box[i, low], box[j, low])
                box[k, low + 2] = max(box[i, low + 2], box[j, low + 2])


def _plain_depth_first(children, leaves):
    """(N,) leaves in depth-first order, and the first and last + 1 position of each of K nodes."""
    nodes = leaves + len(children)
    size = np.ones(nodes, np.int64)
    for m in range(len(children)):
        size[leaves + m] = size[children[m, 0]] + size[children[m, 1]]
    first = np.zeros(nodes, np.int64)
    for k in range(nodes - 1, leaves - 1, -1):
        i, j = children[k - leaves, 0], children[k - leaves, 1]
        first[i] = first[k]
        first[j] = first[k] + size[i]
    order = np.empty(leaves, np.int64)
    for leaf in range(leaves):
        order[first[leaf]] = leaf
    return order, first, first + size


if numba is not None:
    _compile = numba.njit(cache=True, nogil=True)
    _children, _accumulate, _depth_first = map(_compile, (_plain_children, _plain_accumulate, _plain_depth_first))
else:
    _children, _accumulate, _depth_first = _plain_children, _plain_accumulate, _plain_depth_first

"""Global clustering: exact greedy merging of neighbouring regions, one run for every threshold (SOHES section 3.1).

Every cell of a feature grid starts as a region. The pair of 4-neighbours with the highest cosine similarity merges, and
the merged region's feature is the SUM of the two, until no pair is left. A heap of pairs with lazy deletion makes the
run O(E log E) for E pairs, where the published code of the field scans all pairs at every merge.

Two decisions make the result independent of the implementation: sums are float32 and similarities are accumulated in
float64 and then rounded to float32, so that the order of a summation cannot decide a comparison; and equal similarities
merge the lower pair of region ids first, where a merged region keeps the lower id of the two.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

try:
    import numba
except ImportError:  # the numpy path below gives the same result, only slower
    numba = None

# Floor of the product of two norms: an all-zero feature is similar to nothing (cosine 0) instead of undefined.
_TINY = 1e-30
# The heap packs two region ids and a merge index into 63 bits.
_MOST_CELLS = 2**21


@dataclass(frozen=True)
class Regions:
    """Distinct regions that stand at one threshold at least, larger levels meaning later (coarser) snapshots.

    Attributes:
        labels: (L, rows, cols) int32, per threshold the region id of each cell (the lowest cell index of the region).
        ids: (R,) int64, region id of each region in ``labels[first]``.
        first, last: (R,) int64, the first and last level at which exactly this region stands.
        birth, death: (R,) float32, the similarity at which it came to be and at which it was absorbed, both as running
        minima
            of the merge sequence, so that birth >= death. A single cell is born at 1; what is left at the end dies at
            -1.
    """

    labels: np.ndarray
    ids: np.ndarray
    first: np.ndarray
    last: np.ndarray
    birth: np.ndarray
    death: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class MergeHistory:
    """The merge sequence of one run, from which the partition at any threshold can be read.

    Attributes:
        grid: (rows, cols).
        kept, absorbed: (M,) int32 region ids of each merge, kept < absorbed.
        similarity: (M,) float32 cosine similarity of each merge.
    """

    grid: tuple[int, int]
    kept: np.ndarray
    absorbed: np.ndarray
    similarity: np.ndarray

    def steps(self, thetas: Sequence[float]) -> np.ndarray:
        """(L,) number of merges before the best similarity first falls under each threshold."""
        lowest = np.minimum.accumulate(self.similarity)
        return np.searchsorted(-lowest, -np.asarray(thetas, np.float32), side="right")

    def region_counts(self, thetas: Sequence[float]) -> np.ndarray:
        """(L,) number of regions in the snapshot of each threshold."""
        return self.grid[0] * self.grid[1] - self.steps(thetas)

    def labels(self, thetas: Sequence[float]) -> np.ndarray:
        """(L, rows, cols) int32 snapshots: each cell's region id, which is the lowest cell index of its region."""
        return np.stack([self._labels_after(step) for step in self.steps(thetas)]).reshape(-1, *self.grid)

    def _labels_after(self, step: int) -> np.ndarray:
        parent = np.arange(self.grid[0] * self.grid[1], dtype=np.int32)
        parent[self.absorbed[:step]] = self.kept[:step]
        while True:  # pointer jumping: the longest chain halves every time
            above = parent[parent]
            if np.array_equal(above, parent):
                return parent
            parent = above

    def regions(self, thetas: Sequence[float]) -> Regions:
        """The distinct regions over all snapshots: one that outlives several thresholds is listed once.

        Args:
            thetas: descending thresholds.
        """
        steps, merges, n_cells = self.steps(thetas), len(self.similarity), self.grid[0] * self.grid[1]
        # A region is the state of its id between two merges that the id takes part in: cells from the start, and what
        # each merge leaves. `made` and `ended` are the indices of these merges, -1 for the start, `merges` for never.
        ids = np.concatenate([np.arange(n_cells), self.kept]).astype(np.int64)
        made = np.concatenate([np.full(n_cells, -1), np.arange(merges)])
        ended = self._next_merge(ids, made)
        first = np.searchsorted(steps, made, side="right")
        last = np.searchsorted(steps, ended, side="right") - 1
        order = np.lexsort((ids, first))
        order = order[(first <= last)[order]]
        # Births and deaths as running minima, between 1 for a cell and -1 for what is left.
        life = np.concatenate([np.minimum.accumulate(self.similarity), np.float32([-1, 1])])
        return Regions(
            self.labels(thetas), ids[order], first[order], last[order], life[made[order]], life[ended[order]]
        )

    def _next_merge(self, ids: np.ndarray, made: np.ndarray) -> np.ndarray:
        """For each (id, merge index) the next merge that the id takes part in, or the number of merges."""
        merges = len(self.similarity)
        keys = np.sort(
            np.concatenate([self.kept, self.absorbed]).astype(np.int64) * (merges + 1) + np.tile(np.arange(merges), 2)
        )
        position = np.searchsorted(keys, ids * (merges + 1) + made, side="right")
        found = np.append(keys, -1)[position]
        return np.where(found // (merges + 1) == ids, found % (merges + 1), merges)


def merge_regions(features: np.ndarray, use_numba: bool | None = None) -> MergeHistory:
    """Merge a feature grid down to one region.

    Args:
        features: (rows, cols, C), taken as float32.
        use_numba: True or False to force a path; None takes numba where it is installed. Both give the same history.

    Returns:
        The merge history; ``labels(thetas)`` and ``regions(thetas)`` read the snapshots off it.

    Raises:
        ValueError: not a three-dimensional grid, or a feature that is not finite.
        ImportError: numba was asked for and is not installed.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 3 or 0 in features.shape:
        raise ValueError(f"features must be a non-empty (rows, cols, C) grid, got shape {features.shape}")
    if features.shape[0] * features.shape[1] > _MOST_CELLS:
        raise ValueError(f"a grid of {features.shape[:2]} cells is too large; lower EXPLORATION.FEATURES.TOKEN_BUDGET")
    if not np.isfinite(features).all():
        raise ValueError("features contain NaN or infinity; check the extractor's weights and its precision")
    if use_numba is None:
        use_numba = numba is not None
    if use_numba and numba is None:
        raise ImportError("numba is not installed: `pip install numba`, or use_numba=False for the slower path")
    rows, cols, channels = features.shape
    run = _merge_numba if use_numba else _merge_numpy
    kept, absorbed, similarity = run(features.reshape(-1, channels).copy(), grid_edges(rows, cols))
    return MergeHistory((rows, cols), kept, absorbed, similarity)


def grid_edges(rows: int, cols: int) -> np.ndarray:
    """(E, 2) int32 pairs (lower, higher) of 4-neighbouring cell indices of a grid."""
    index = np.arange(rows * cols, dtype=np.int32).reshape(rows, cols)
    right = np.stack([index[:, :-1].ravel(), index[:, 1:].ravel()], axis=1)
    down = np.stack([index[:-1].ravel(), index[1:].ravel()], axis=1)
    return np.concatenate([right, down])


def _merge_numpy(sums: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n = len(sums)
    neighbours: list[set[int]] = [set() for _ in range(n)]
    for a, b in edges.tolist():
        neighbours[a].add(b)
        neighbours[b].add(a)
    norms = np.sqrt((sums.astype(np.float64) ** 2).sum(axis=1))

    def similarities(region: int, others: np.ndarray) -> np.ndarray:
        products = sums[others].astype(np.float64) @ sums[region].astype(np.float64)
        return (products / np.maximum(norms[others] * norms[region], _TINY)).astype(np.float32)

    changed = [0] * n  # the merge at which a region last changed; pairs that were put on the heap before are stale
    heap = []  # (-similarity, pair as one number that orders like (a, b), merge at which it was put here)
    for a in range(n):
        later = np.asarray(sorted(b for b in neighbours[a] if b > a), dtype=np.int64)
        heap.extend((-s, a * n + b, 0) for s, b in zip(similarities(a, later).tolist(), later.tolist()))
    heapq.heapify(heap)
    merges = []
    while len(merges) < n - 1:
        negative, pair, put_at = heapq.heappop(heap)
        a, b = divmod(pair, n)
        if max(changed[a], changed[b]) > put_at:
            continue
        merges.append((a, b, -negative))
        sums[a] += sums[b]
        norms[a] = np.sqrt((sums[a].astype(np.float64) ** 2).sum())
        changed[a] = len(merges)
        changed[b] = n  # after every merge: it is gone
        for c in neighbours[b]:
            neighbours[c].discard(b)
            if c != a:
                neighbours[c].add(a)
                neighbours[a].add(c)
        neighbours[b] = set()
        others = np.asarray(sorted(neighbours[a]), dtype=np.int64)
        for s, c in zip(similarities(a, others).tolist(), others.tolist()):
            heapq.heappush(heap, (-s, min(a, c) * n + max(a, c), len(merges)))
    kept, absorbed, similarity = zip(*merges) if merges else ((), (), ())
    return np.asarray(kept, np.int32), np.asarray(absorbed, np.int32), np.asarray(similarity, np.float32)


if numba is not None:
    # Only the order of additions may change, which the rounding to float32 absorbs; NaN and zero keep their meaning.
    _jit = numba.njit(cache=True, fastmath={"reassoc", "contract"}, nogil=True)

    @_jit
    def _dot(sums, a, b):
        total = 0.0
        for k in range(sums.shape[1]):
            total += np.float64(sums[a, k]) * np.float64(sums[b, k])
        return total

    @_jit
    def _cosine(sums, norms, a, b):
        return np.float32(_dot(sums, a, b) / max(norms[a] * norms[b], _TINY))

    @_jit
    def _find(owner, region):
        while owner[region] != region:
            owner[region] = owner[owner[region]]
            region = owner[region]
        return region

    @_jit
    def _merge_numba(sums, edges):
        n, n_edges = len(sums), len(edges)
        norms = np.empty(n)
        for a in range(n):
            norms[a] = np.sqrt(_dot(sums, a, a))
        # Neighbours are linked lists of half-edges, which join in O(1); `owner` says which region a far end belongs to
        # by now.
        owner = np.arange(n)
        far_end = np.empty(2 * n_edges, np.int64)
        following = np.full(2 * n_edges, -1)
        head = np.full(n, -1)
        tail = np.full(n, -1)
        changed = np.zeros(n, np.int64)  # as in the numpy path; of a heap entry the last two are one number
        heap = []
        for e in range(n_edges):
            a, b = np.int64(edges[e, 0]), np.int64(edges[e, 1])
            far_end[2 * e], far_end[2 * e + 1] = b, a
            for region, half in ((a, 2 * e), (b, 2 * e + 1)):
                if tail[region] < 0:
                    head[region] = half
                else:
                    following[tail[region]] = half
                tail[region] = half
            heap.append((-_cosine(sums, norms, a, b), (a * n + b) * n))
        heapq.heapify(heap)
        kept = np.empty(max(n - 1, 0), np.int32)
        absorbed = np.empty(max(n - 1, 0), np.int32)
        similarity = np.empty(max(n - 1, 0), np.float32)
        seen_at = np.full(n, -1)
        merges = 0
        # A grid is connected: the last merge leaves one region, and on the heap stale pairs only.
        while merges < n - 1:
            negative, entry = heapq.heappop(heap)
            pair, put_at = entry // n, entry % n
            a, b = pair // n, pair % n
            if max(changed[a], changed[b]) > put_at:
                continue
            kept[merges], absorbed[merges], similarity[merges] = a, b, -negative
            for k in range(sums.shape[1]):
                sums[a, k] += sums[b, k]
            norms[a] = np.sqrt(_dot(sums, a, a))
            changed[a] = merges + 1
            changed[b] = n  # after every merge: it is gone
            owner[b] = a
            following[tail[a]] = head[b]
            tail[a] = tail[b]
            # Walk the joined list: keep one half-edge per neighbour, and give each pair its new similarity.
            previous = -1
            half = head[a]
            while half >= 0:
                c = _find(owner, far_end[half])
                after = following[half]
                if c == a or seen_at[c] == merges:
                    if previous < 0:
                        head[a] = after
                    else:
                        following[previous] = after
                else:
                    seen_at[c] = merges
                    far_end[half] = c
                    previous = half
                    entry = (min(a, c) * n + max(a, c)) * n + merges + 1
                    heapq.heappush(heap, (-_cosine(sums, norms, a, c), entry))
                half = after
            tail[a] = previous
            merges += 1
        return kept[:merges], absorbed[:merges], similarity[:merges]

"""Exact greedy merging of neighbouring regions: one run, from the leaves to the whole photo (SOHES section 3.1).

The pair of neighbours with the highest priority merges, and the merged region's feature is the SUM of the two, until
no pair is left. The similarity of two regions is

    similarity = cos(sum of features) - border_weight * (mean strength of their shared border)

and their priority is the same, or, with a size power p, 1 - (1 - similarity) * h ** p, where h is the harmonic mean of
their areas: small regions merge first. Square cells, border weight 0 and size power 0 are the paper's clustering.

A heap of pairs with lazy deletion makes the run O(E log E) for E pairs. Two decisions make the result independent of
the implementation: feature sums are float32 and everything else is accumulated in float64 (or exactly, in integers)
and then rounded to float32, so that the order of a summation cannot decide a comparison; and of pairs with
equal priority the one with the lower region ids merges first, and the merged region keeps the lower id.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .regions import STRENGTH_UNIT, RegionGraph

try:
    import numba
except ImportError:  # the numpy path below gives the same result, but is slower
    numba = None

# Floor of the product of two norms: the cosine with an all-zero feature is 0 instead of undefined.
_TINY = 1e-30
# The heap packs two region ids and a merge index into 63 bits.
_MOST_REGIONS = 2**21


@dataclass(frozen=True)
class MergeHistory:
    """The merge sequence of one run over N leaves, from which `MergeTree` is built.

    Attributes:
        leaves: N.
        kept, absorbed: (N - 1,) int32 region ids of each merge, kept < absorbed.
        priority: (N - 1,) float32, by which each merge was chosen.
        similarity: (N - 1,) float32; equals the priority if the size power is 0.
        length, strength: (N - 1,) int64, of the border that each merge removed, as in RegionGraph.
        surround: (N - 1,) float32, mean of 1 - similarity between each merged region and its neighbours at that step,
            weighted by the length of their borders; 0 without neighbours.
    """

    leaves: int
    kept: np.ndarray
    absorbed: np.ndarray
    priority: np.ndarray
    similarity: np.ndarray
    length: np.ndarray
    strength: np.ndarray
    surround: np.ndarray


def merge_regions(
    features: np.ndarray,
    graph: RegionGraph,
    *,
    areas: np.ndarray | None = None,
    border_weight: float = 0.0,
    size_power: float = 0.0,
    use_numba: bool | None = None,
) -> MergeHistory:
    """Merge the leaves of a connected graph down to one region.

    Args:
        features: (N, C), converted to float32.
        graph: region graph of the N leaves.
        areas: (N,) pixels of each leaf; needed with a size power.
        border_weight: lambda >= 0, weight of the mean border strength relative to the cosine.
        size_power: p >= 0.
        use_numba: True or False to force a path; None uses numba if installed. Both give the same history.

    Raises:
        ValueError: shapes that do not fit, a feature that is not finite, or a graph that is not connected.
        ImportError: numba was requested and is not installed.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or 0 in features.shape or len(features) != len(graph):
        raise ValueError(f"features must be (N, C) for the graph's {len(graph)} regions, got shape {features.shape}")
    if len(features) > _MOST_REGIONS:
        raise ValueError(f"{len(features)} leaves are too many; lower EXPLORATION.MAX_PIXELS")
    if not np.isfinite(features).all():
        raise ValueError("features contain NaN or infinity; check the extractor's weights and its precision")
    if size_power and areas is None:
        raise ValueError("merging with a size power needs the areas of the leaves")
    if use_numba is None:
        use_numba = numba is not None
    if use_numba and numba is None:
        raise ImportError("numba is not installed: `pip install numba`, or use_numba=False for the slower path")
    run = _merge_numba if use_numba else _merge_numpy
    areas = np.ones(len(features)) if areas is None else np.asarray(areas, np.float64)
    parts = run(
        features.copy(),
        graph.indptr,
        graph.indices,
        graph.length,
        graph.strength,
        areas.copy(),
        float(border_weight),
        float(size_power),
    )
    if len(parts[0]) < len(features) - 1:
        raise ValueError("the graph of neighbours is not connected")
    return MergeHistory(len(features), *parts)


def _priority(similarity, area_a, area_b, size_power):
    """The priority (float64) of a pair, from its similarity and the two areas."""
    if size_power == 0.0:
        return similarity
    return 1.0 - (1.0 - similarity) * (2.0 * area_a * area_b / (area_a + area_b)) ** size_power


def _in_units(similarity):
    """1 - similarity as an integer in units of about 1e-6, whose sums are exact in any order."""
    return int(np.floor((1.0 - similarity) * (STRENGTH_UNIT * STRENGTH_UNIT) + 0.5))


def _merge_numpy(sums, indptr, indices, lengths, strengths, areas, border_weight, size_power):
    n = len(sums)
    weight = border_weight / STRENGTH_UNIT
    borders = [
        {
            c: (length, strength)
            for c, length, strength in zip(*(values[start:end].tolist() for values in (indices, lengths, strengths)))
        }
        for start, end in zip(indptr[:-1].tolist(), indptr[1:].tolist())
    ]  # of each region: neighbour -> (length, strength)
    norms = np.sqrt((sums.astype(np.float64) ** 2).sum(axis=1))

    def values(region: int, others: list[int]) -> tuple[list[float], list[float]]:
        products = sums[others].astype(np.float64) @ sums[region].astype(np.float64)
        cosines = products / np.maximum(norms[others] * norms[region], _TINY)
        similarities = [
            cosine - weight * borders[region][c][1] / borders[region][c][0]
            for cosine, c in zip(cosines.tolist(), others)
        ]
        areas_of = [(areas[min(region, c)], areas[max(region, c)]) for c in others]
        priorities = [_priority(s, float(a), float(b), size_power) for s, (a, b) in zip(similarities, areas_of)]
        return similarities, [float(np.float32(p)) for p in priorities]

    changed = [0] * n  # the merge at which a region last changed; heap entries older than that are stale
    # (-priority, pair as one number that orders like (a, b), merge at which it was pushed)
    heap: list[tuple[float, int, int]] = []
    for a in range(n):
        later = sorted(b for b in borders[a] if b > a)
        if later:
            heap.extend((-p, a * n + b, 0) for p, b in zip(values(a, later)[1], later))
    heapq.heapify(heap)
    merges: list[tuple[Any, ...]] = []
    surround: list[float] = []
    while heap and len(merges) < n - 1:
        negative, pair, put_at = heapq.heappop(heap)
        a, b = divmod(pair, n)
        if max(changed[a], changed[b]) > put_at:
            continue
        similarity = values(a, [b])[0][0]
        merges.append((a, b, -negative, similarity, *borders[a][b]))
        sums[a] += sums[b]
        norms[a] = np.sqrt((sums[a].astype(np.float64) ** 2).sum())
        areas[a] += areas[b]
        changed[a] = len(merges)
        changed[b] = n  # later than any merge: b no longer exists
        for c, (length, strength) in borders[b].items():
            del borders[c][b]
            if c != a:
                more = borders[a].get(c, (0, 0))
                borders[a][c] = borders[c][a] = (length + more[0], strength + more[1])
        borders[b] = {}
        others = sorted(borders[a])
        unlike, around = 0, 0
        if others:
            for s, p, c in zip(*values(a, others), others):
                heapq.heappush(heap, (-p, min(a, c) * n + max(a, c), len(merges)))
                unlike += borders[a][c][0] * _in_units(s)
                around += borders[a][c][0]
        surround.append(unlike / (STRENGTH_UNIT * STRENGTH_UNIT * max(around, 1)))
    columns: list[Sequence[Any]] = [*zip(*merges)] if merges else [()] * 6
    types = (np.int32, np.int32, np.float32, np.float32, np.int64, np.int64, np.float32)
    return tuple(np.asarray(part, dtype) for part, dtype in zip([*columns, surround], types))


if numba is not None:
    # Additions may be reordered and fused, which the rounding to float32 absorbs; NaN and zero are handled exactly.
    _jit = numba.njit(cache=True, fastmath={"reassoc", "contract"}, nogil=True)
    _compiled_priority = numba.njit(cache=True, nogil=True)(_priority)
    _compiled_in_units = numba.njit(cache=True, nogil=True)(_in_units)

    @_jit
    def _dot(sums, a, b):
        total = 0.0
        for k in range(sums.shape[1]):
            total += np.float64(sums[a, k]) * np.float64(sums[b, k])
        return total

    @_jit
    def _similarity(sums, norms, a, b, length, strength, weight):
        return _dot(sums, a, b) / max(norms[a] * norms[b], _TINY) - weight * strength / length

    @_jit
    def _entry(areas, a, b, similarity, size_power):
        return -np.float32(_compiled_priority(similarity, areas[min(a, b)], areas[max(a, b)], size_power))

    @_jit
    def _find(owner, region):
        while owner[region] != region:
            owner[region] = owner[owner[region]]
            region = owner[region]
        return region

    @_jit
    def _merge_numba(sums, indptr, indices, lengths, strengths, areas, border_weight, size_power):
        n, halves = len(sums), len(indices)
        weight = border_weight / STRENGTH_UNIT
        norms = np.empty(n)
        for a in range(n):
            norms[a] = np.sqrt(_dot(sums, a, a))
        # Neighbours are linked lists of half-edges, which join in O(1); `owner` maps a far end to its current region.
        # Several half-edges to one neighbour are added up when the list is walked.
        owner = np.arange(n)
        far_end = indices.astype(np.int64)
        length, strength = lengths.copy(), strengths.copy()
        following = np.arange(1, halves + 1)
        head = indptr[:-1].copy()
        tail = indptr[1:] - 1
        changed = np.zeros(n, np.int64)  # as in the numpy path; the last two values of a heap entry are packed
        heap: list[Any] = [(np.float32(0), np.int64(0)) for _ in range(0)]
        for a in range(n):
            if indptr[a] == indptr[a + 1]:
                head[a] = -1
                continue
            following[tail[a]] = -1
            for half in range(indptr[a], indptr[a + 1]):
                b = far_end[half]
                if a < b:
                    value = _similarity(sums, norms, a, b, length[half], strength[half], weight)
                    heap.append((_entry(areas, a, b, value, size_power), (a * n + b) * n))
        heapq.heapify(heap)
        most = max(n - 1, 0)
        kept, absorbed = np.empty(most, np.int32), np.empty(most, np.int32)
        priority, similarity = np.empty(most, np.float32), np.empty(most, np.float32)
        gone_length, gone_strength = np.zeros(most, np.int64), np.zeros(most, np.int64)
        surround = np.zeros(most, np.float32)
        seen_at, seen_half = np.full(n, -1), np.full(n, -1)
        merges = 0
        while merges < n - 1 and len(heap) > 0:
            negative, entry = heapq.heappop(heap)
            pair, put_at = entry // n, entry % n
            a, b = pair // n, pair % n
            if max(changed[a], changed[b]) > put_at:
                continue
            half = head[a]
            while half >= 0:
                if _find(owner, far_end[half]) == b:
                    gone_length[merges] += length[half]
                    gone_strength[merges] += strength[half]
                half = following[half]
            kept[merges], absorbed[merges], priority[merges] = a, b, -negative
            similarity[merges] = np.float32(
                _similarity(sums, norms, a, b, gone_length[merges], gone_strength[merges], weight)
            )
            for k in range(sums.shape[1]):
                sums[a, k] += sums[b, k]
            norms[a] = np.sqrt(_dot(sums, a, a))
            areas[a] += areas[b]
            changed[a] = merges + 1
            changed[b] = n  # later than any merge: b no longer exists
            owner[b] = a
            following[tail[a]] = head[b]
            tail[a] = tail[b]
            # Walk the joined list: keep one half-edge per neighbour, with the total border.
            previous = -1
            half = head[a]
            while half >= 0:
                c = _find(owner, far_end[half])
                after = following[half]
                if c == a or seen_at[c] == merges:
                    if c != a:
                        length[seen_half[c]] += length[half]
                        strength[seen_half[c]] += strength[half]
                    if previous < 0:
                        head[a] = after
                    else:
                        following[previous] = after
                else:
                    seen_at[c], seen_half[c] = merges, half
                    far_end[half] = c
                    previous = half
                half = after
            tail[a] = previous
            unlike, around = 0, 0
            half = head[a]
            while half >= 0:
                c = far_end[half]
                value = _similarity(sums, norms, a, c, length[half], strength[half], weight)
                unlike += length[half] * _compiled_in_units(value)
                around += length[half]
                entry = (min(a, c) * n + max(a, c)) * n + merges + 1
                heapq.heappush(heap, (_entry(areas, a, c, value, size_power), entry))
                half = following[half]
            surround[merges] = unlike / (STRENGTH_UNIT * STRENGTH_UNIT * max(around, 1))
            merges += 1
        return (
            kept[:merges],
            absorbed[:merges],
            priority[:merges],
            similarity[:merges],
            gone_length[:merges],
            gone_strength[:merges],
            surround[:merges],
        )

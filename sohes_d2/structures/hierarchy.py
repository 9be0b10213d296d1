"""Rules of the hierarchy: parents, near-duplicates, and selection of the entities that explain a photo best.

Everything here works on arrays (parents, areas, scores, overlaps) with numpy alone, so that the labels, the model, the
teacher and an exported file share one set of rules. ``parents`` is (N,) int64, the index of each mask's parent, -1 for
a whole; a parent's area is larger than its child's, so that no circle can arise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

NO_PARENT = -1
_CANDIDATES = 10  # per entity that is wanted, the best masks by score
TIE = 1e-6  # sums of probabilities that differ by less are equal

# (index, other indices) -> shares of the first mask that lie inside each of the others
Coverage = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """Thresholds of the forest that people see, the keys of EXPLORATION.HIERARCHY; see sohes_d2/config.

    Attributes:
        theta_cover: share of a mask that its parent covers, at least.
        max_child_area: share of its parent's area that a mask takes, at most; over it, both are one entity.
        max_only_child_area: the same for a mask without siblings.
        max_overlap: share of the smaller of two wholes, or of two selected entities, that both cover, at most.
        max_depth: of a mask; 0 for a whole.
        rank_scale: how fast a mask's value to a selection falls with its rank, see `entity_values`.
    """

    theta_cover: float = 0.9
    max_child_area: float = 0.7
    max_only_child_area: float = 0.5
    max_overlap: float = 0.1
    max_depth: int = 4
    rank_scale: float = 0.5

    @classmethod
    def from_config(cls, node: Mapping) -> Rules:
        """The thresholds of a config's EXPLORATION.HIERARCHY."""
        return cls(**{key.lower(): value for key, value in node.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Parents.


def parents_by_coverage(
    coverage: np.ndarray, areas: np.ndarray, theta_cover: float, max_child_area: float = 1.0
) -> np.ndarray:
    """The smallest mask that each is inside of (SOHES, section 3.1; threshold as in HASSOD).

    A is inside B if B covers A by ``theta_cover``, and not the reverse. That implies a strictly larger area; masks that
    cover each other both ways are siblings.

    Args:
        coverage: (N, N) in [0, 1], [i, j] = share of mask i inside mask j.
        areas: (N,) pixels.
        theta_cover: in (0, 1].
        max_child_area: share in (0, 1]: A is not inside B either if its area is a larger share of B's.

    Returns:
        (N,) parents; of equal areas, the first.
    """
    covered = coverage >= theta_cover
    inside = covered & ~covered.T
    if max_child_area < 1:
        inside &= areas[:, None] <= max_child_area * areas[None, :]
    if not len(areas):
        return np.zeros(0, np.int64)
    candidate_areas = np.where(inside, areas[None, :], np.iinfo(np.int64).max)
    return np.where(inside.any(axis=1), candidate_areas.argmin(axis=1), NO_PARENT)


def parents_by_probability(
    probabilities: np.ndarray,
    areas: np.ndarray,
    coverage: Coverage,
    threshold: float,
    theta_cover: float,
    max_child_area: float,
) -> np.ndarray:
    """Decode predicted ancestors to a forest, by probability and coverage.

    A pair is kept if its probability reaches ``threshold``, the ancestor covers the descendant by ``theta_cover``, and
    the descendant's area is at most ``max_child_area`` of the ancestor's: masks of nearly one area are two outlines of
    one entity, and siblings. From the largest mask to the smallest, each gets the kept ancestor as its parent whose
    whole chain of ancestors is the likeliest: the sum of (probability - threshold) over the chain is largest, where a
    pair that is not kept counts as improbable (0). Of equal chains, the one of the smallest parent.

    Args:
        probabilities: (N, N) in [0, 1], [i, j] = probability that i is an ancestor of j; the diagonal is ignored.
        areas: (N,) pixels.
        coverage: asked for pairs whose probability and areas pass.
        threshold: probability in [0, 1].
        theta_cover: coverage in [0, 1]; 0 trusts the probabilities alone.
        max_child_area: share in (0, 1]; with 1, any smaller mask can be a child.

    Returns:
        (N,) parents. No child is over ``max_child_area`` of its parent.
    """
    probabilities = np.asarray(probabilities, np.float64)
    areas = np.asarray(areas)
    inside = (probabilities.T >= threshold) & (areas[None, :] > areas[:, None])
    inside &= areas[:, None] <= max_child_area * areas[None, :]
    if theta_cover > 0:
        for k in np.flatnonzero(inside.any(axis=1)).tolist():  # all pairs would take long
            above = np.flatnonzero(inside[k])
            inside[k, above] = np.asarray(coverage(k, above)) >= theta_cover
    return _likeliest(inside, probabilities, threshold, areas)


def _likeliest(inside: np.ndarray, probabilities: np.ndarray, threshold: float, areas: np.ndarray) -> np.ndarray:
    """(N,) parents with the likeliest chains, given (N, N) ``inside``, [i, j] = i may be inside j."""
    parents = np.full(len(areas), NO_PARENT)
    chains = np.eye(len(areas))  # [i, j] = 1 if j is i or an ancestor of i
    order = np.argsort(-areas, kind="stable")
    rank = np.argsort(order)
    for k in order[inside[order].any(axis=1)]:
        gain = np.where(inside[k], probabilities[:, k], 0.0) - threshold
        values = np.where(inside[k], chains @ gain, -np.inf)
        best = values.max()
        if best < -TIE:
            continue
        equal = np.flatnonzero(values >= best - TIE)
        parents[k] = equal[np.argmax(rank[equal])]
        chains[k] += chains[parents[k]]
    return parents


# ----------------------------------------------------------------------------------------------------------------------
# What follows from parents.


def depths_of(parents: np.ndarray) -> np.ndarray:
    """(N,) int64: 0 for a whole, 1 for a part, 2 and more below.

    Raises:
        ValueError: the parents run in a circle.
    """
    depths = np.zeros(len(parents), np.int64)
    current = parents.copy()
    for _ in range(len(parents) + 1):
        above = current != NO_PARENT
        if not above.any():
            return depths
        depths[above] += 1
        current[above] = parents[current[above]]
    raise ValueError(f"the parents of mask {int(np.flatnonzero(current != NO_PARENT)[0])} run in a circle")


def ancestors_of(parents: np.ndarray) -> np.ndarray:
    """(N, N) bool, ``[i, j]`` = i is a proper ancestor of j: the transitive closure of the parents."""
    matrix = np.zeros((len(parents), len(parents)), dtype=bool)
    for index in np.argsort(depths_of(parents), kind="stable"):
        parent = parents[index]
        if parent != NO_PARENT:
            matrix[:, index] = matrix[:, parent]
            matrix[parent, index] = True
    return matrix


def children_of(parents: np.ndarray) -> list[np.ndarray]:
    """N arrays, the indices of each mask's direct children, ascending."""
    order = np.argsort(parents, kind="stable")
    bounds = np.searchsorted(parents[order], np.arange(len(parents) + 1))
    return [order[start:end] for start, end in zip(bounds, bounds[1:])]


def linked_to_kept(parents: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(N,) parents where each mask is linked to its nearest ancestor of those that ``keep``, (N,) bool, marks.

    Raises:
        ValueError: the parents run in a circle.
    """
    depths_of(parents)  # a circle would never end below
    linked = parents.copy()
    while True:
        dropped = (linked != NO_PARENT) & ~keep[linked]
        if not dropped.any():
            return linked
        linked[dropped] = parents[linked[dropped]]


def path_names(parents: np.ndarray, order: np.ndarray) -> list[str]:
    """N names such as "2.1.3", the third part of the first part of the second whole; siblings are numbered from 1.

    Args:
        parents: (N,).
        order: all indices in the order in which siblings are numbered.
    """
    names = [""] * len(parents)
    counts = np.zeros(len(parents) + 1, np.int64)  # the last one counts the wholes, which -1 addresses
    numbers = np.zeros(len(parents), np.int64)
    for k in order:
        counts[parents[k]] += 1
        numbers[k] = counts[parents[k]]
    for k in np.argsort(depths_of(parents), kind="stable"):
        names[k] = str(numbers[k]) if parents[k] == NO_PARENT else f"{names[parents[k]]}.{numbers[k]}"
    return names


# ----------------------------------------------------------------------------------------------------------------------
# The forest that people see.


def distinct_masks(parents: np.ndarray, areas: np.ndarray, scores: np.ndarray, max_child_area: float) -> np.ndarray:
    """(N,) bool: masks that differ enough from those above and below them; of two that do not, the better stays.

    Along each line from a whole to its smallest part, masks are kept by falling score (of equal ones, the larger first)
    if their area is at most ``max_child_area`` of that of the nearest kept mask above, and the same the other way
    round below. Only the order of the scores counts.

    Args:
        parents: (N,).
        areas: (N,) pixels.
        scores: (N,) any scale.
        max_child_area: share in (0, 1].
    """
    keep = np.zeros(len(parents), bool)
    # per mask, the area of the largest kept mask below it: what the nearest kept one above has to exceed
    largest_below = np.zeros(len(parents))
    for k in np.lexsort((-areas, -scores)):
        if largest_below[k] > max_child_area * areas[k]:
            continue
        above = parents[k]
        while above != NO_PARENT and not keep[above]:
            above = parents[above]
        if above != NO_PARENT and areas[k] > max_child_area * areas[above]:
            continue
        keep[k] = True
        above = parents[k]
        while above != NO_PARENT:
            largest_below[above] = max(largest_below[above], areas[k])
            above = parents[above]
    return keep


def without_only_children(
    parents: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    max_only_child_area: float,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """(N,) bool: masks that stay when runs of only children collapse.

    An only child of more than ``max_only_child_area`` of its parent is the same entity: the better of the two stays. Of
    a longer run of only children, each inside the one before, the first mask and the best of the others stay.

    Args:
        parents: (N,).
        areas: (N,) pixels.
        scores: (N,) any scale; only their order counts.
        max_only_child_area: share in (0, 1].
        keep: (N,) bool, the masks to look at; all by default.
    """
    keep = np.ones(len(parents), bool) if keep is None else keep.copy()
    while True:
        linked = linked_to_kept(parents, keep)
        count = np.bincount(linked[keep & (linked != NO_PARENT)], minlength=len(parents))
        only = keep & (linked != NO_PARENT) & (count[linked] == 1)
        same = np.flatnonzero(only & (areas > max_only_child_area * areas[linked]))
        if len(same):
            # one link of a run at a time: the others are checked again afterwards
            above = linked[same]
            first = ~np.isin(above, same)
            worse = np.where(scores[same] > scores[above], above, same)
            keep[worse[first]] = False
            continue
        inner = np.flatnonzero(only & only[linked])  # an only child of an only child
        if not len(inner):
            return keep
        above = linked[inner]
        first = ~np.isin(above, inner)
        keep[np.where(scores[inner] > scores[above], above, inner)[first]] = False


def with_few_levels(parents: np.ndarray, scores: np.ndarray, max_depth: int, keep: np.ndarray) -> np.ndarray:
    """(N,) bool: of a line that has too many levels, the worst mask between its whole and its end is left out.

    Args:
        parents: (N,).
        scores: (N,) any scale; only their order counts.
        max_depth: of what stays, at least 0; with 0, the wholes stay.
        keep: (N,) bool, the masks to look at.
    """
    keep = keep.copy()
    linked = linked_to_kept(parents, keep)
    if max_depth < 1:
        return keep & (linked == NO_PARENT)
    while True:
        depths = np.where(keep, depths_of(linked), 0)
        deepest = int(depths.argmax()) if len(depths) else 0
        if not len(depths) or depths[deepest] <= max_depth:
            return keep
        between = []
        above = linked[deepest]
        while linked[above] != NO_PARENT:
            between.append(above)
            above = linked[above]
        worst = min(between, key=lambda k: scores[k])
        keep[worst] = False
        linked[linked == worst] = linked[worst]


def disjoint_wholes(
    parents: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    coverage: Coverage,
    keep: np.ndarray,
    rules: Rules,
) -> tuple[np.ndarray, np.ndarray]:
    """Take away wholes that overlap better ones; what was inside of them goes to what covers it, or is a whole.

    Args:
        parents: (N,).
        areas: (N,) pixels.
        scores: (N,) any scale.
        coverage: of any masks.
        keep: (N,) bool, the masks to look at.
        rules: theta_cover, max_child_area and max_overlap count.

    Returns:
        (N,) bool, the masks that stay, and (N,) parents among these.
    """
    keep, parents = keep.copy(), linked_to_kept(parents, keep)
    children = children_of(np.where(keep, parents, len(parents)))  # removed masks have no children
    pending = [(-scores[k], -areas[k], int(k)) for k in np.flatnonzero(keep & (parents == NO_PARENT))]
    heapq.heapify(pending)
    wholes: list[int] = []
    while pending:
        _, _, k = heapq.heappop(pending)
        others = np.asarray(wholes, np.int64)
        shared = np.asarray(coverage(k, others)) * areas[k] if wholes else np.zeros(0)
        if not (shared > rules.max_overlap * np.minimum(areas[k], areas[others])).any():
            wholes.append(k)
            continue
        above = others[(shared >= rules.theta_cover * areas[k]) & (areas[k] <= rules.max_child_area * areas[others])]
        if len(above):  # inside of a better whole: a part of it, or of the smallest of its parts that covers it
            whole = above[np.argmin(areas[above])]
            parents[k] = _smallest_cover(k, int(whole), children, areas, coverage, rules)
            children[parents[k]] = np.append(children[parents[k]], k)
            continue
        keep[k] = False
        for child in children[k]:
            parents[child] = NO_PARENT
            heapq.heappush(pending, (-scores[child], -areas[child], int(child)))
    return keep, parents


def _smallest_cover(
    k: int, whole: int, children: list[np.ndarray], areas: np.ndarray, coverage: Coverage, rules: Rules
) -> int:
    """The smallest mask on the way down from ``whole`` that covers mask ``k``."""
    while True:
        below = children[whole][areas[k] <= rules.max_child_area * areas[children[whole]]]
        covers = below[np.asarray(coverage(k, below)) >= rules.theta_cover] if len(below) else below
        if not len(covers):
            return whole
        whole = int(covers[np.argmin(areas[covers])])


def collapse(
    parents: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    coverage: Coverage,
    rules: Rules,
    wholes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The forest that people see: masks that say the same become one, and wholes do not overlap.

    `distinct_masks`, `disjoint_wholes`, `without_only_children` and `with_few_levels`, one after the other. Of the
    scores only the order counts.

    Args:
        parents: (N,).
        areas: (N,) pixels.
        scores: (N,) any scale.
        coverage: of any masks.
        rules: the thresholds.
        wholes: indices of disjoint masks that are the wholes, and stay, with what is inside of them; chosen by default.

    Returns:
        (N,) bool, the masks that stay, and (N,) their parents among these.
    """
    if wholes is None:
        keep = distinct_masks(parents, areas, scores, rules.max_child_area)
        keep, parents = disjoint_wholes(parents, areas, scores, coverage, keep, rules)
    else:
        is_whole = np.zeros(len(parents) + 1, bool)
        is_whole[wholes] = True
        inside = is_whole[:-1] | is_whole[linked_to_kept(parents, is_whole[:-1])]
        parents = np.where(is_whole[:-1] | ~inside, NO_PARENT, parents)
        scores = np.where(is_whole[:-1], np.inf, scores)
        keep = inside & distinct_masks(parents, areas, scores, rules.max_child_area)
    keep = without_only_children(parents, areas, scores, rules.max_only_child_area, keep)
    keep = with_few_levels(parents, scores, rules.max_depth, keep)
    return keep, linked_to_kept(parents, keep)


# ----------------------------------------------------------------------------------------------------------------------
# Selection.


def best_cut(parents: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` masks, none of which is inside another, with the greatest sum of values.

    Exact, by dynamic programming over the trees: the best k masks of a subtree are its root alone, or the best split of
    k among the root's children. About N * count steps.

    Args:
        parents: (N,).
        values: (N,) numbers; masks of value 0 or less are never taken.
        count: at least 0.

    Returns:
        Ascending indices. Where a mask is worth as much as the best masks inside, it is taken instead of these.
    """
    roof = len(parents)  # virtual parent of the wholes
    parents = np.where(parents == NO_PARENT, roof, parents)
    # [k] = the greatest sum of at most k masks: of a subtree without its root, and how it was split among the children
    tables = [np.zeros(1)] * (roof + 1)
    splits: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(roof + 1)]
    for k in np.argsort(-depths_of(np.where(parents == roof, NO_PARENT, parents)), kind="stable"):
        table = _with_root(tables[k], values[k])[: count + 1]
        if len(table) > 1:
            tables[parents[k]], split = _add_tables(tables[parents[k]], table, count)
            splits[parents[k]].append((k, split))
    chosen = []
    pending = [(roof, min(count, len(tables[roof]) - 1))]
    while pending:
        node, budget = pending.pop()
        if node != roof and values[node] >= tables[node][min(budget, len(tables[node]) - 1)]:
            chosen.append(node)
            continue
        for child, split in reversed(splits[node]):
            budget = min(budget, len(split) - 1)
            if split[budget]:
                pending.append((child, int(split[budget])))
            budget -= int(split[budget])
    return np.sort(np.asarray(chosen, np.int64))


def _with_root(table: np.ndarray, value: float) -> np.ndarray:
    """The table of a subtree, from that of its root's children."""
    if value <= 0:
        return table
    table = table if len(table) > 1 else np.zeros(2)
    return np.append(table[:1], np.maximum(table[1:], value))


def _add_tables(a: np.ndarray, b: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The table of two sets of masks together, and how many of each number of masks come from ``b``."""
    size = min(len(a) + len(b) - 2, count) + 1
    of_b = np.arange(len(b))[None]
    of_a = np.arange(size)[:, None] - of_b
    sums = np.where((of_a >= 0) & (of_a < len(a)), a[of_a.clip(0, len(a) - 1)] + b, -np.inf)
    split = sums.argmax(axis=1)
    return sums[np.arange(size), split], split


def entity_values(scores: np.ndarray, shares: np.ndarray, count: int, rank_scale: float = 0.5) -> np.ndarray:
    """(N,) what a mask is worth to a selection of ``count``, in [0, 1]: (1 - share) * exp(-r / (rank_scale * count)).

    share (N,) is of the photo's area: what fills the photo is rather the ground of its entities than one of them. r is
    the number of better masks. Ranks and not scores, since what a score means differs between phase 1 and models: all
    that is assumed is that a higher one is better. With a small scale the best masks are selected whatever else fits
    beside them; with a large one, two parts soon outweigh their whole. From the ``10 * count``-th on, a mask is worth
    nothing, so that these need not be looked at. Of fewer masks than ``count``, their number is taken for it.
    """
    scores = np.asarray(scores)
    count = min(count, len(scores))
    better = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    values = (1 - np.asarray(shares)) * np.exp(-better / (rank_scale * max(1, count)))
    return np.where(better < _CANDIDATES * count, values, 0.0)


def disjoint_cut(
    parents: np.ndarray, areas: np.ndarray, values: np.ndarray, coverage: Coverage, count: int, max_overlap: float
) -> np.ndarray:
    """`best_cut` where masks overlap that are not inside one another: the better of two stays, and all is chosen anew.

    Args:
        parents: (N,).
        areas: (N,) pixels.
        values: (N,) numbers; masks of value 0 or less are never taken.
        coverage: of any masks.
        count: at least 0.
        max_overlap: pixels that two chosen masks may share, as a share of the smaller one.

    Returns:
        At most ``count`` indices by falling value.
    """
    values = np.maximum(values, 0)
    fixed = np.zeros(len(parents), bool)
    bonus = values.sum() + 1  # no sum of others replaces a mask that is fixed
    everything = np.arange(len(parents))

    def overlapping(k: int, others: np.ndarray) -> np.ndarray:
        return np.asarray(coverage(k, others)) * areas[k] > max_overlap * np.minimum(areas[k], areas[others])

    while True:
        chosen = best_cut(parents, values + bonus * fixed, count)
        chosen = chosen[np.argsort(-values[chosen], kind="stable")]
        accepted: list[int] = []
        winners: set[int] = set()
        for k in chosen:
            better = np.asarray(accepted, np.int64)
            better = better[overlapping(k, better)] if accepted else better
            winners.update(better.tolist())
            if not len(better):
                accepted.append(int(k))
        if not winners:
            return chosen
        for k in winners:
            others = everything[(values > 0) & (everything != k)]
            values[others[overlapping(k, others)]] = 0
        fixed[list(winners)] = True

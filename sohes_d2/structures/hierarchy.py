"""Rules of the hierarchy: parents, near-duplicates, and selection of the entities that explain a photo best.

All functions work on numpy arrays, so that labels, model, teacher and exported files share the same rules:

- ``parents``: (N,) int64, the index of each mask's parent, -1 for a whole; a parent's area is larger than its child's,
  so there are no cycles.
- ``areas``: (N,) pixels.
- ``scores``: (N,), any scale; only their order matters.
- ``keep``: (N,) bool, the masks to consider or, as a result, those that remain.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

NO_PARENT = -1
_CANDIDATES = 10  # number of best-scored masks considered per requested entity
TIE = 1e-6  # sums of probabilities that differ by less count as equal

# (index, other indices) -> shares of the first mask that lie inside each of the others
Coverage = Callable[[int, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rules:
    """Thresholds of the displayed forest, the keys of EXPLORATION.HIERARCHY; see sohes_d2/config.

    Attributes:
        theta_cover: smallest share of a mask that its parent covers.
        max_child_area: largest area of a mask as a share of its parent's area; above it, both are the same entity.
        max_only_child_area: the same for a mask without siblings.
        max_overlap: largest overlap of two wholes, or of two selected entities, as a share of the smaller one.
        max_depth: largest depth of a mask; the depth of a whole is 0.
        rank_scale: how fast the value of a mask for a selection decreases with its rank, see `entity_values`.
    """

    theta_cover: float = 0.9
    max_child_area: float = 0.7
    max_only_child_area: float = 0.5
    max_overlap: float = 0.1
    max_depth: int = 4
    rank_scale: float = 0.5

    @classmethod
    def from_config(cls, node: Mapping) -> Rules:
        """The thresholds in EXPLORATION.HIERARCHY of a config."""
        return cls(**{key.lower(): value for key, value in node.items()})


# ----------------------------------------------------------------------------------------------------------------------
# Parents.


def parents_by_coverage(
    coverage: np.ndarray, areas: np.ndarray, theta_cover: float, max_child_area: float = 1.0
) -> np.ndarray:
    """Parent of each mask: the smallest mask that contains it (SOHES, section 3.1; threshold as in HASSOD).

    A is inside B if B covers at least ``theta_cover`` of A, and not vice versa. This implies that B is strictly larger;
    masks that cover each other are siblings.

    Args:
        coverage: (N, N) in [0, 1], [i, j] = share of mask i inside mask j.
        areas: (N,) pixels.
        theta_cover: in (0, 1].
        max_child_area: in (0, 1]; A is not inside B if its area is a larger share of B's.

    Returns:
        (N,) parents; among candidates of equal area, the first.
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
    """Decode predicted ancestor probabilities and coverage to parents.

    A pair is valid if its probability is at least ``threshold``, the ancestor covers at least ``theta_cover`` of the
    descendant, and the descendant's area is at most ``max_child_area`` of the ancestor's; masks of nearly equal area
    are two outlines of one entity and become siblings. Masks are processed from the largest to the smallest. The parent
    of each is the valid ancestor with the most likely chain, which has the largest sum of (probability - threshold)
    over its masks, where invalid pairs have probability 0. Ties: the smallest parent.

    Args:
        probabilities: (N, N) in [0, 1], [i, j] = probability that i is an ancestor of j; the diagonal is ignored.
        areas: (N,) pixels.
        coverage: called for pairs whose probability and areas are valid.
        threshold: probability in [0, 1].
        theta_cover: coverage in [0, 1]; 0: only the probabilities count.
        max_child_area: share in (0, 1]; with 1, any smaller mask can be a child.

    Returns:
        (N,) parents. No child has more than ``max_child_area`` of its parent's area.
    """
    probabilities = np.asarray(probabilities, np.float64)
    areas = np.asarray(areas)
    inside = (probabilities.T >= threshold) & (areas[None, :] > areas[:, None])
    inside &= areas[:, None] <= max_child_area * areas[None, :]
    if theta_cover > 0:
        for k in np.flatnonzero(inside.any(axis=1)).tolist():  # computing all pairs would be slow
            above = np.flatnonzero(inside[k])
            inside[k, above] = np.asarray(coverage(k, above)) >= theta_cover
    return _most_likely_parents(inside, probabilities, threshold, areas)


def _most_likely_parents(
    inside: np.ndarray, probabilities: np.ndarray, threshold: float, areas: np.ndarray
) -> np.ndarray:
    """(N,) parents with the most likely chains, given (N, N) ``inside``, [i, j] = i may be inside j."""
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
# Attributes computed from parents.


def depths_of(parents: np.ndarray) -> np.ndarray:
    """(N,) int64: 0 for a whole, 1 for a part, 2 or more below.

    Raises:
        ValueError: the parents form a cycle.
    """
    depths = np.zeros(len(parents), np.int64)
    current = parents.copy()
    for _ in range(len(parents) + 1):
        above = current != NO_PARENT
        if not above.any():
            return depths
        depths[above] += 1
        current[above] = parents[current[above]]
    raise ValueError(f"the parents of mask {int(np.flatnonzero(current != NO_PARENT)[0])} run in a cycle")


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
    """N arrays with the indices of each mask's direct children, ascending."""
    order = np.argsort(parents, kind="stable")
    bounds = np.searchsorted(parents[order], np.arange(len(parents) + 1))
    return [order[start:end] for start, end in zip(bounds, bounds[1:])]


def linked_to_kept(parents: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """(N,) parents where each mask is linked to its nearest ancestor in ``keep``, (N,) bool.

    Raises:
        ValueError: the parents form a cycle.
    """
    depths_of(parents)  # raises on a cycle, which would not terminate below
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
        order: all indices, in the order in which siblings are numbered.
    """
    names = [""] * len(parents)
    counts = np.zeros(len(parents) + 1, np.int64)  # the last entry, addressed by -1, counts the wholes
    numbers = np.zeros(len(parents), np.int64)
    for k in order:
        counts[parents[k]] += 1
        numbers[k] = counts[parents[k]]
    for k in np.argsort(depths_of(parents), kind="stable"):
        names[k] = str(numbers[k]) if parents[k] == NO_PARENT else f"{names[parents[k]]}.{numbers[k]}"
    return names


# ----------------------------------------------------------------------------------------------------------------------
# The displayed forest.


def distinct_masks(parents: np.ndarray, areas: np.ndarray, scores: np.ndarray, max_child_area: float) -> np.ndarray:
    """(N,) bool: masks to keep so that no kept mask has nearly the same area as its nearest kept ancestor.

    Along each path from a whole to its smallest part, masks are visited by descending score (ties: the larger first)
    and kept if their area is at most ``max_child_area``, a share in (0, 1], of that of the nearest kept ancestor, and
    the area of every kept descendant is at most ``max_child_area`` of their own.
    """
    keep = np.zeros(len(parents), bool)
    # area of each mask's largest kept descendant
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
    parents: np.ndarray, areas: np.ndarray, scores: np.ndarray, max_only_child_area: float, keep: np.ndarray
) -> np.ndarray:
    """(N,) bool: masks to keep when runs of only children are collapsed.

    An only child with more than ``max_only_child_area``, a share in (0, 1], of its parent's area is the same entity:
    the better-scored of the two is kept. Of a longer run of nested only children, the first mask and the best of the
    others are kept.
    """
    keep = keep.copy()
    while True:
        linked = linked_to_kept(parents, keep)
        count = np.bincount(linked[keep & (linked != NO_PARENT)], minlength=len(parents))
        only = keep & (linked != NO_PARENT) & (count[linked] == 1)
        inner = np.flatnonzero(only & (areas > max_only_child_area * areas[linked]))
        if not len(inner):
            inner = np.flatnonzero(only & only[linked])  # an only child of an only child
        if not len(inner):
            return keep
        # one pair per run and iteration, because a removal changes the other pairs
        above = linked[inner]
        first = ~np.isin(above, inner)
        keep[np.where(scores[inner] > scores[above], above, inner)[first]] = False


def with_few_levels(parents: np.ndarray, scores: np.ndarray, max_depth: int, keep: np.ndarray) -> np.ndarray:
    """(N,) bool: masks to keep so that no path is deeper than ``max_depth``; inner masks of lowest score are dropped.

    With a ``max_depth`` of 0, the wholes remain.
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
    """Remove wholes that overlap better ones, or make them parts of these; children of removed wholes become wholes.

    Of the thresholds, theta_cover, max_child_area and max_overlap are used.

    Returns:
        ``keep`` and the parents among these.
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
        if len(above):  # inside a better whole: a part of it, or of its smallest part that covers it
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
    """The smallest mask below ``whole``, or ``whole``, that covers mask ``k``."""
    smallest = whole
    while True:
        below = children[smallest][areas[k] <= rules.max_child_area * areas[children[smallest]]]
        covers = below[np.asarray(coverage(k, below)) >= rules.theta_cover] if len(below) else below
        if not len(covers):
            return smallest
        smallest = int(covers[np.argmin(areas[covers])])


def collapse(
    parents: np.ndarray,
    areas: np.ndarray,
    scores: np.ndarray,
    coverage: Coverage,
    rules: Rules,
    wholes: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The displayed forest: few levels, without near-duplicates and overlapping wholes.

    Applies `distinct_masks`, `disjoint_wholes`, `without_only_children` and `with_few_levels`. ``wholes`` are indices
    of disjoint masks to use as wholes and keep with the masks inside them; by default they are computed.

    Returns:
        ``keep`` and the parents among these.
    """
    if wholes is None:
        keep = distinct_masks(parents, areas, scores, rules.max_child_area)
        keep, parents = disjoint_wholes(parents, areas, scores, coverage, keep, rules)
    else:
        is_whole = np.isin(np.arange(len(parents)), wholes)
        inside = is_whole | (linked_to_kept(parents, is_whole) != NO_PARENT)
        parents = np.where(is_whole | ~inside, NO_PARENT, parents)
        scores = np.where(is_whole, np.inf, scores)
        keep = inside & distinct_masks(parents, areas, scores, rules.max_child_area)
    keep = without_only_children(parents, areas, scores, rules.max_only_child_area, keep)
    keep = with_few_levels(parents, scores, rules.max_depth, keep)
    return keep, linked_to_kept(parents, keep)


# ----------------------------------------------------------------------------------------------------------------------
# Selection.


def best_cut(parents: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` masks, none inside another, with the largest sum of values.

    Exact dynamic programming over the trees: the best k masks of a subtree are its root alone, or the best split of k
    among the root's children. About N * count steps.

    Args:
        parents: (N,).
        values: (N,) numbers; masks of value 0 or less are never selected.
        count: at least 0.

    Returns:
        Ascending indices. A mask is preferred to masks inside it of equal total value.
    """
    virtual_root = len(parents)  # parent of the wholes
    parents = np.where(parents == NO_PARENT, virtual_root, parents)
    # [k] = the largest sum of at most k masks of a subtree without its root, and its split among the children
    tables = [np.zeros(1)] * (virtual_root + 1)
    splits: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(virtual_root + 1)]
    for k in np.argsort(-depths_of(np.where(parents == virtual_root, NO_PARENT, parents)), kind="stable"):
        table = _with_root(tables[k], values[k])[: count + 1]
        if len(table) > 1:
            tables[parents[k]], split = _add_tables(tables[parents[k]], table, count)
            splits[parents[k]].append((k, split))
    chosen = []
    pending = [(virtual_root, min(count, len(tables[virtual_root]) - 1))]
    while pending:
        node, budget = pending.pop()
        if node != virtual_root and values[node] >= tables[node][min(budget, len(tables[node]) - 1)]:
            chosen.append(node)
            continue
        for child, split in reversed(splits[node]):
            budget = min(budget, len(split) - 1)
            if split[budget]:
                pending.append((child, int(split[budget])))
            budget -= int(split[budget])
    return np.sort(np.asarray(chosen, np.int64))


def _with_root(table: np.ndarray, value: float) -> np.ndarray:
    """The table of a subtree, given that of its root's children."""
    if value <= 0:
        return table
    table = table if len(table) > 1 else np.zeros(2)
    return np.append(table[:1], np.maximum(table[1:], value))


def _add_tables(a: np.ndarray, b: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The table of the union of two sets of masks, and how many of each number of masks come from ``b``."""
    size = min(len(a) + len(b) - 2, count) + 1
    of_b = np.arange(len(b))[None]
    of_a = np.arange(size)[:, None] - of_b
    sums = np.where((of_a >= 0) & (of_a < len(a)), a[of_a.clip(0, len(a) - 1)] + b, -np.inf)
    split = sums.argmax(axis=1)
    return sums[np.arange(size), split], split


def entity_values(scores: np.ndarray, shares: np.ndarray, count: int, rank_scale: float = 0.5) -> np.ndarray:
    """(N,) value of each mask for a selection of ``count``, in [0, 1]: (1 - share) * exp(-r / (rank_scale * count)).

    share (N,) is the area as a share of the photo: a mask that fills the photo is background rather than an entity. r
    is the number of better masks. Ranks are used because the scale of scores differs between phase 1 and models. With a
    small ``rank_scale`` the best masks are selected regardless of what else fits beside them; with a large one, two
    parts easily outweigh their whole. Masks of rank ``10 * count`` and above have value 0 and are not considered.
    ``count`` is limited to the number of masks.
    """
    scores = np.asarray(scores)
    count = min(count, len(scores))
    better = len(scores) - np.searchsorted(np.sort(scores), scores, side="right")
    values = (1 - np.asarray(shares)) * np.exp(-better / (rank_scale * max(1, count)))
    return np.where(better < _CANDIDATES * count, values, 0.0)


def disjoint_cut(
    parents: np.ndarray, areas: np.ndarray, values: np.ndarray, coverage: Coverage, count: int, max_overlap: float
) -> np.ndarray:
    """`best_cut` for masks that overlap without nesting: the better of two is kept, and the selection is repeated.

    Args:
        parents, areas: (N,).
        values, count: see `best_cut`.
        coverage: computes the coverage of any masks.
        max_overlap: largest overlap of two selected masks, as a share of the smaller one.

    Returns:
        At most ``count`` indices by descending value.
    """
    values = np.maximum(values, 0)
    fixed = np.zeros(len(parents), bool)
    bonus = values.sum() + 1  # larger than any sum of values, so that fixed masks stay selected

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
            others = np.setdiff1d(np.flatnonzero(values > 0), k)
            values[others[overlapping(k, others)]] = 0
        fixed[list(winners)] = True

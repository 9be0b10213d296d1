"""Hierarchy rules on handmade cases, and against plain loops on deep random cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sohes_d2.structures import hierarchy as H
from sohes_d2.structures.masks import coverage_matrix, encode_masks, mask_areas

SIZE = (20, 30)


def random_masks(rng, n):
    """Rectangles with corners on a coarse grid, so that equal masks, equal areas and round coverages are common."""
    masks = np.zeros((n, *SIZE), dtype=bool)
    for mask in masks:
        ys, xs = (np.sort(rng.choice(np.arange(0, size + 1, 5), 2, replace=False)) for size in SIZE)
        mask[ys[0] : ys[1], xs[0] : xs[1]] = True
        if rng.random() < 0.3:
            mask[ys[0], xs[0]] = False
    return masks


def random_forest(rng, n):
    """Parents and areas of a deep random forest, in random order; parents are larger than children."""
    parents = np.array([rng.integers(max(-1, k - 4), k) if k else -1 for k in range(n)])
    areas = np.zeros(n, np.int64)
    for k in range(n):
        above = 10_000 if parents[k] < 0 else areas[parents[k]]
        areas[k] = max(1, int(above * rng.choice([0.95, 0.85, 0.75, 0.6, 0.4, 0.2])))
    order = rng.permutation(n)
    place = np.append(np.argsort(order), -1)
    return place[parents[order]], areas[order]


def of(matrix):
    return lambda k, others: matrix[k, others]


def likeliest_by_loops(probabilities, areas, coverage, threshold, theta_cover, max_child_area):
    """The rule of `parents_by_probability`, chain by chain in plain Python."""
    n = len(areas)

    def kept(i, j):
        return (
            probabilities[i, j] >= threshold
            and areas[j] < areas[i]
            and areas[j] <= max_child_area * areas[i]
            and (theta_cover <= 0 or coverage[j, i] >= theta_cover)
        )

    parents = [-1] * n
    done: list[int] = []
    for j in sorted(range(n), key=lambda k: -areas[k]):
        best, chosen = None, -1
        for i in done:
            if not kept(i, j):
                continue
            value, above = 0.0, i
            while above >= 0:
                value += (probabilities[above, j] if kept(above, j) else 0.0) - threshold
                above = parents[above]
            # later in the order, so it is smaller and wins a tie
            if value >= -H.TIE and (best is None or value >= best - H.TIE):
                best, chosen = max(value, best if best is not None else value), i
        parents[j] = chosen
        done.append(j)
    return parents


@pytest.mark.parametrize("seed", range(10))
def test_decoding_equals_plain_loops(seed):
    rng = np.random.default_rng(seed)
    n = [1, 6, 15, 40, 60][seed % 5]
    rles = encode_masks(random_masks(rng, n))
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    probabilities = rng.random((n, n)).round(2) ** 0.5
    deepest = 0
    for settings in [(0.5, 0.5, 1.0), (0.2, 0.9, 0.8), (0.3, 0.5, 0.5), (0.7, 0.0, 0.8)]:
        parents = H.parents_by_probability(probabilities, areas, of(coverage), *settings)
        assert parents.tolist() == likeliest_by_loops(probabilities, areas, coverage, *settings)
        deepest = max(deepest, H.depths_of(parents).max())
        linked = parents >= 0
        assert (areas[linked] <= settings[2] * areas[parents[linked]]).all()
    assert n < 40 or deepest >= 4


def test_masks_of_nearly_equal_area_are_siblings():
    """A chain of outlines of one entity, each a tenth smaller, inside a whole; and a true part."""
    masks = np.zeros((5, *SIZE), bool)
    masks[0, :, :] = True
    for k, width in ((1, 15), (2, 14), (3, 13)):
        masks[k, :10, :width] = True
    masks[4, :5, :6] = True
    rles = encode_masks(masks)
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    certain = np.ones((5, 5))
    decoded = [H.parents_by_probability(certain, areas, of(coverage), 0.5, 0.5, r).tolist() for r in (1.0, 0.8)]
    assert decoded == [[-1, 0, 1, 2, 3], [-1, 0, 0, 0, 3]]
    by_coverage = [H.parents_by_coverage(coverage, areas, 0.95, r).tolist() for r in (1.0, 0.8)]
    assert by_coverage == [[-1, 0, 1, 2, 3], [-1, 0, 0, 0, 3]]


def test_empty():
    none = np.zeros(0, np.int64)
    matrix = np.zeros((0, 0))
    assert len(H.parents_by_coverage(matrix, none, 0.9)) == 0
    assert len(H.parents_by_probability(matrix, none, of(matrix), 0.5, 0.5, 0.8)) == 0
    assert len(H.best_cut(none, np.zeros(0), 5)) == 0
    assert [len(v) for v in H.collapse(none, none, np.zeros(0), of(matrix), H.Rules())] == [0, 0]
    assert H.path_names(none, none) == []


def test_a_cycle_is_found():
    for function in (H.depths_of, H.ancestors_of):
        with pytest.raises(ValueError, match="cycle"):
            function(np.array([-1, 2, 1]))
    with pytest.raises(ValueError, match="cycle"):
        H.linked_to_kept(np.array([1, 0]), np.array([True, False]))


def test_names_are_paths():
    parents = np.array([1, -1, 1, -1, 0])
    assert H.path_names(parents, np.array([3, 1, 2, 0, 4])) == ["2.2", "2", "2.1", "1", "2.2.1"]
    assert [c.tolist() for c in H.children_of(parents)] == [[4], [0, 2], [], [], []]


@pytest.mark.parametrize("seed", range(8))
def test_the_cut_is_optimal(seed):
    rng = np.random.default_rng(seed)
    for _ in range(12):
        n = int(rng.integers(1, 11))
        parents, _ = random_forest(rng, n)
        values = rng.random(n).round(2) * (rng.random(n) > 0.2)
        related = H.ancestors_of(parents)
        for count in range(5):
            cut = H.best_cut(parents, values, count)
            assert len(cut) <= count and not related[np.ix_(cut, cut)].any()
            best = max(
                values[list(some)].sum()
                for size in range(count + 1)
                for some in itertools.combinations(range(n), size)
                if not related[np.ix_(some, some)].any()
            )
            assert values[cut].sum() == pytest.approx(best)


def test_the_cut_of_a_thousand_masks_is_fast():
    import time

    rng = np.random.default_rng(0)
    parents, areas = random_forest(rng, 1000)
    start = time.process_time()
    cut = H.best_cut(parents, rng.random(1000), 20)
    assert len(cut) == 20
    assert time.process_time() - start < 2  # typically 0.1


def test_overlapping_trees_keep_the_better_mask():
    #        0 and 1 overlap by half; 2 and 3 are parts of 1, 3 outside of 0
    masks = np.zeros((4, *SIZE), bool)
    masks[0, :, :16] = True
    masks[1, :, 8:24] = True
    masks[2, :, 8:16] = True
    masks[3, :, 17:24] = True
    rles = encode_masks(masks)
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    parents = np.array([-1, -1, 1, 1])
    cut = H.disjoint_cut(parents, areas, np.array([0.9, 0.8, 0.2, 0.3]), of(coverage), 2, 0.1)
    assert cut.tolist() == [0, 3], "1 and 2 overlap 0, which is better"
    cut = H.disjoint_cut(parents, areas, np.array([0.5, 0.8, 0.2, 0.3]), of(coverage), 2, 0.1)
    assert cut.tolist() == [1]
    cut = H.disjoint_cut(parents, areas, np.array([0.5, 0.8, 0.2, 0.3]), of(coverage), 2, 0.5)
    assert cut.tolist() == [1, 0], "half of each is allowed"


@pytest.mark.parametrize("seed", range(6))
def test_selected_masks_do_not_overlap(seed):
    rng = np.random.default_rng(seed)
    rles = encode_masks(random_masks(rng, 40))
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    parents = H.parents_by_coverage(coverage, areas, 0.9)
    values = rng.random(40)
    for count in (1, 5, 12):
        cut = H.disjoint_cut(parents, areas, values, of(coverage), count, 0.1)
        assert 1 <= len(cut) <= count
        assert (np.diff(values[cut]) <= 0).all()
        shared = coverage[np.ix_(cut, cut)] * areas[cut][:, None]
        smaller = np.minimum(areas[cut][:, None], areas[cut])
        assert (shared <= 0.1 * smaller)[~np.eye(len(cut), dtype=bool)].all()


def test_values_are_ranks():
    scores = np.array([0.01, 0.5, 0.03, 0.02])
    values = H.entity_values(scores, np.zeros(4), 2, 1.0)
    np.testing.assert_allclose(values, np.exp([-1.5, 0, -0.5, -1.0]))
    again = H.entity_values(scores**3, np.zeros(4), 2, 1.0)
    assert np.array_equal(values, again), "the scale of the scores does not matter"
    assert np.count_nonzero(H.entity_values(np.arange(100), np.zeros(100), 3)) == 30
    shares = np.array([0.0, 0.75, 0.5, 1.0])
    np.testing.assert_allclose(H.entity_values(scores, shares, 2, 1.0), values * [1, 0.25, 0.5, 0])
    # selecting more masks than exist selects all
    assert np.array_equal(H.entity_values(scores, shares, 20), H.entity_values(scores, shares, 4))


def chain_forest():
    """A whole, two more outlines of it, a part with 60 % of their area, and a part with 30 % of that."""
    return np.array([-1, 0, 1, 2, 3]), np.array([1000, 950, 900, 540, 160])


def test_the_better_of_near_duplicates_is_kept():
    parents, areas = chain_forest()
    assert H.distinct_masks(parents, areas, np.array([0.1, 0.9, 0.2, 0.1, 0.1]), 0.7).tolist() == [0, 1, 0, 1, 1]
    assert H.distinct_masks(parents, areas, np.array([0.9, 0.1, 0.2, 0.1, 0.1]), 0.7).tolist() == [1, 0, 0, 1, 1]
    assert H.distinct_masks(parents, areas, np.array([0.9, 0.1, 0.2, 0.1, 0.1]), 1.0).all()
    # a better part removes only ancestors of similar area
    assert H.distinct_masks(parents, areas, np.array([0.1, 0.1, 0.1, 0.9, 0.1]), 0.58).tolist() == [1, 0, 0, 1, 1]


@pytest.mark.parametrize("seed", range(8))
def test_distinct_masks_differ_and_cover_the_others(seed):
    rng = np.random.default_rng(seed)
    parents, areas = random_forest(rng, 60)
    scores = rng.random(60).round(1)
    keep = H.distinct_masks(parents, areas, scores, 0.7)
    linked = H.linked_to_kept(parents, keep)
    inside = keep & (linked >= 0)
    assert (areas[inside] <= 0.7 * areas[linked[inside]]).all()
    related = H.ancestors_of(parents)
    for k in np.flatnonzero(~keep):  # a kept relative of similar area has at least its score
        line = np.flatnonzero(keep & (related[k] | related[:, k]))
        ratios = np.minimum(areas[line], areas[k]) / np.maximum(areas[line], areas[k])
        assert ((scores[line] >= scores[k]) & (ratios > 0.7)).any()


def test_runs_of_only_children_collapse():
    parents, areas = np.array([-1, 0, 1, 2, 2]), np.array([1000, 400, 160, 60, 60])
    # a chain 0 > 1 > 2, and two parts of 2: the first and the best of the others are kept
    keep = H.without_only_children(parents, areas, np.array([0.5, 0.2, 0.3, 0.1, 0.1]), 0.5, np.ones(5, bool))
    assert keep.tolist() == [1, 0, 1, 1, 1]
    keep = H.without_only_children(parents, areas, np.array([0.5, 0.3, 0.2, 0.1, 0.1]), 0.5, np.ones(5, bool))
    assert keep.tolist() == [1, 1, 0, 1, 1]
    # an only child that covers most of its parent is the same entity
    parents, scores, both = np.array([-1, 0]), np.array([0.1, 0.2]), np.ones(2, bool)
    keep = H.without_only_children(parents, np.array([1000, 600]), scores, 0.5, both)
    assert keep.tolist() == [0, 1]
    keep = H.without_only_children(parents, np.array([1000, 400]), scores, 0.5, both)
    assert keep.tolist() == [1, 1]


def test_depth_is_limited():
    parents, scores = np.array([-1, 0, 1, 2, 3, 0]), np.array([0.1, 0.5, 0.2, 0.3, 0.1, 0.1])
    everything = np.ones(6, bool)
    assert H.with_few_levels(parents, scores, 4, everything).all()
    assert H.with_few_levels(parents, scores, 3, everything).tolist() == [1, 1, 0, 1, 1, 1]
    assert H.with_few_levels(parents, scores, 1, everything).tolist() == [1, 0, 0, 0, 1, 1]
    assert H.with_few_levels(parents, scores, 0, everything).tolist() == [1, 0, 0, 0, 0, 0]


def test_wholes_do_not_overlap():
    """The better of two overlapping wholes is kept; children of the other become wholes or parts of others."""
    masks = np.zeros((5, *SIZE), bool)
    masks[0, :, :16] = True  # good
    masks[1, :, 8:30] = True  # bad, overlaps 0
    masks[2, :, 20:30] = True  # inside 1 alone
    masks[3, 2:8, 9:15] = True  # inside both, linked to 1
    masks[4, :4, 24:28] = True  # inside 2
    rles = encode_masks(masks)
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    parents = np.array([-1, -1, 1, 1, 2])
    scores = np.array([0.9, 0.2, 0.3, 0.4, 0.5])
    keep, linked = H.disjoint_wholes(parents, areas, scores, of(coverage), np.ones(5, bool), H.Rules())
    assert keep.tolist() == [1, 0, 1, 1, 1]
    assert linked[keep].tolist() == [-1, -1, 0, 2]


@pytest.mark.parametrize("seed", range(8))
def test_the_collapsed_forest_follows_the_rules(seed):
    rng = np.random.default_rng(seed)
    rles = encode_masks(random_masks(rng, 60))
    areas, coverage = mask_areas(rles), coverage_matrix(rles, rles)
    parents = H.parents_by_coverage(coverage, areas, 0.9)
    rules = H.Rules(max_depth=2)
    scores = rng.random(60)
    keep, linked = H.collapse(parents, areas, scores, of(coverage), rules)
    inside = np.flatnonzero(keep & (linked >= 0))
    assert keep[linked[inside]].all()
    assert H.depths_of(linked)[keep].max() <= 2
    assert (areas[inside] <= rules.max_child_area * areas[linked[inside]]).all()
    assert (coverage[inside, linked[inside]] >= rules.theta_cover).all()
    wholes = np.flatnonzero(keep & (linked < 0))
    shared = coverage[np.ix_(wholes, wholes)] * areas[wholes][:, None]
    smaller = np.minimum(areas[wholes][:, None], areas[wholes])
    assert (shared <= rules.max_overlap * smaller)[~np.eye(len(wholes), dtype=bool)].all()
    # only the order of the scores matters
    again = H.collapse(parents, areas, scores**4, of(coverage), rules)
    assert np.array_equal(again[0], keep) and np.array_equal(again[1], linked)

"""Labels are sampled evenly over sizes."""

from __future__ import annotations

import numpy as np

from sohes_d2.data.training.label_sampling import stratified_order

# 900 small, 90 medium, 10 large
AREAS = np.concatenate([np.full(900, 20), np.full(90, 1000), np.full(10, 50000)])
SIZE = np.repeat([0, 1, 2], [900, 90, 10])


def test_it_is_a_permutation_that_repeats_with_its_seed():
    order = stratified_order(AREAS, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, stratified_order(AREAS, np.random.default_rng(0)))
    assert not np.array_equal(order, stratified_order(AREAS, np.random.default_rng(1)))
    assert stratified_order(np.zeros(0), np.random.default_rng(0)).shape == (0,)


def test_any_beginning_is_even_over_sizes():
    order = stratified_order(AREAS, np.random.default_rng(0))
    for k in (3, 15, 30):
        assert np.bincount(SIZE[order[:k]], minlength=3).tolist() == [k // 3] * 3
    # the ten large ones are all in, the rest is shared
    assert np.bincount(SIZE[order[:100]]).tolist() == [45, 45, 10]
    assert np.bincount(SIZE[order[:200]]).tolist() == [100, 90, 10]


def test_within_a_size_all_are_equally_likely():
    counts = np.zeros(1000)
    for seed in range(300):
        counts[stratified_order(AREAS, np.random.default_rng(seed))[:100]] += 1
    assert (counts[-10:] == 300).all()
    # expected 45 of 300 * 900 and of 300 * 90; 5 standard deviations of a binomial
    assert abs(counts[:900].mean() - 15) < 1e-9 and counts[:900].max() < 15 + 5 * np.sqrt(15)
    assert abs(counts[900:990].mean() - 150) < 1e-9 and abs(counts[900:990] - 150).max() < 5 * np.sqrt(75)


def test_sizes_are_lengths_that_double():
    areas = np.array([4, 7, 15.9, 16, 63])  # two bins: [4, 16) and [16, 64)
    for seed in range(10):
        first = stratified_order(areas, np.random.default_rng(seed))[:2]
        assert (areas[first] < 16).sum() == 1

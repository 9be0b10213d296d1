"""The tensor operations give the forests that `Forest` gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sohes_d2.correction.hierarchy import ancestors_by_coverage, ancestors_by_probabilities
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks
from sohes_d2.structures.overlaps import intersections

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


@pytest.mark.parametrize("seed", range(12))
def test_ancestors_are_those_of_the_forest(seed):
    rng = np.random.default_rng(seed)
    n = [1, 2, 7, 33][seed % 4]
    masks = random_masks(rng, n)
    rles = encode_masks(masks)
    tensor = torch.from_numpy(masks)
    common = intersections(tensor, tensor)
    probabilities = rng.random((n, n)).round(1)
    deepest = 0
    for threshold, theta_cover in [(0.5, 0.5), (0.2, 0.9), (0.0, 0.0), (0.7, 0.0)]:
        forest = Forest.from_probabilities(rles, probabilities, SIZE, threshold, theta_cover)
        found = ancestors_by_probabilities(torch.from_numpy(probabilities), common, threshold, theta_cover)
        assert np.array_equal(found.numpy(), forest.ancestors())
        deepest = max(deepest, forest.depths().max())
    assert n < 33 or deepest >= 5
    for theta_cover in (0.9, 0.5, 1.0):
        found = ancestors_by_coverage(common, theta_cover)
        assert np.array_equal(found.numpy(), Forest.from_masks(rles, SIZE, theta_cover).ancestors())


def test_a_long_chain():
    """Each mask is inside the next; a pair in the middle that is not predicted does not cut the chain."""
    n = 20
    masks = torch.tril(torch.ones(n, n, dtype=torch.bool)).view(n, n, 1)
    larger = torch.ones(n, n).tril(-1)
    larger[12, 4] = 0
    found = ancestors_by_probabilities(larger, intersections(masks, masks), 0.5, 0.5)
    assert torch.equal(found, torch.ones(n, n, dtype=torch.bool).tril(-1))


def test_no_masks():
    none = torch.zeros(0, *SIZE, dtype=torch.bool)
    common = intersections(none, none)
    assert ancestors_by_coverage(common, 0.9).shape == (0, 0)
    assert ancestors_by_probabilities(torch.zeros(0, 0), common, 0.5, 0.5).dtype == torch.bool

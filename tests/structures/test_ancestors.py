"""The ancestor relation under all of Detectron2's operations on fields of `Instances`."""

import numpy as np
import pytest
import torch

from sohes_d2.structures.ancestors import AncestorMatrix

from detectron2.structures import Instances


def closure(parents):
    """(N, N) bool ancestors of a parent vector, where -1 is no parent."""
    ancestors = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for mask, parent in enumerate(parents):
        while parent >= 0:
            ancestors[parent, mask] = True
            parent = parents[parent]
    return ancestors


def pairs(matrix):
    return [tuple(pair) for pair in matrix.tensor.nonzero().tolist()]


@pytest.fixture
def chain():
    """A chain 0 > 1 > 2, and 3 alone."""
    return AncestorMatrix(closure([-1, 0, 1, -1]))


def test_both_axes_are_indexed(chain):
    assert pairs(chain) == [(0, 1), (0, 2), (1, 2)]
    # without the middle, the grandparent is still an ancestor
    assert pairs(chain[torch.tensor([True, False, True, True])]) == [(0, 1)]
    assert pairs(chain[torch.tensor([2, 0])]) == [(1, 0)]
    assert pairs(chain[1:3]) == [(0, 1)]
    assert pairs(chain[[3, 1, 2]]) == [(1, 2)]
    assert pairs(chain[np.array([2, 1])]) == [(1, 0)]
    assert len(chain[[]]) == 0 and len(chain[torch.zeros(4, dtype=torch.bool)]) == 0


def test_one_index_gives_a_matrix_of_one_mask(chain):
    for index in (0, 3, -1, -4):
        assert chain[index].tensor.tolist() == [[False]]
    for index in (4, -5):
        with pytest.raises(IndexError, match=f"{index} of 4"):
            chain[index]
    assert [len(one) for one in chain] == [1, 1, 1, 1]
    with pytest.raises(IndexError):
        chain[torch.tensor([True, False])]


def test_cat_is_block_diagonal(chain):
    none = AncestorMatrix(torch.zeros(0, 0, dtype=torch.bool))
    joined = AncestorMatrix.cat([chain[[0, 1]], none, chain[[2, 1, 0]]])
    assert pairs(joined) == [(0, 1), (3, 2), (4, 2), (4, 3)]
    assert len(AncestorMatrix.cat([])) == 0


def test_is_a_field_of_instances(chain):
    instances = Instances((8, 8), gt_classes=torch.arange(4), gt_ancestors=chain).to("cpu")
    kept = instances[torch.tensor([True, False, True, False])]
    assert kept.gt_classes.tolist() == [0, 2] and pairs(kept.gt_ancestors) == [(0, 1)]
    assert len(instances[2].gt_ancestors) == 1
    assert pairs(Instances.cat([kept, instances]).gt_ancestors) == [(0, 1), (2, 3), (2, 4), (3, 4)]


def test_repr_and_invalid_inputs(chain):
    assert repr(chain) == "AncestorMatrix(4 masks, 3 pairs)"
    with pytest.raises(ValueError, match=r"\(N, N\), got shape \(2, 3\)"):
        AncestorMatrix(torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"torch.float32"):
        AncestorMatrix(torch.zeros(2, 2))
    with pytest.raises(TypeError, match="list"):
        AncestorMatrix([[False]])
    with pytest.raises(TypeError, match=r"torch.float16"):
        chain.to(torch.float16)

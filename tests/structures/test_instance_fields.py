"""RLE masks and ancestor matrices as fields of Instances, under all of Detectron2's operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sohes_d2  # noqa: F401  (before detectron2)
from sohes_d2.structures.instance_fields import AncestorMatrix, RLEMasks, encode_on_device
from sohes_d2.structures.masks import encode_masks

from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import Visualizer


@pytest.fixture
def masks():
    return np.random.default_rng(0).random((4, 9, 7)) > 0.6


@pytest.fixture
def instances(masks):
    instances = Instances((9, 7))
    instances.pred_masks = RLEMasks(encode_masks(masks), (9, 7))
    instances.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, 7.0, 9.0]] * 4))
    instances.scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    instances.pred_classes = torch.zeros(4, dtype=torch.int64)
    return instances


def test_reads_like_a_tensor(masks):
    field = RLEMasks(encode_masks(masks), (9, 7))
    assert len(field) == 4
    assert np.array_equal(np.asarray(field), masks)
    assert np.asarray(field, dtype=np.uint8).dtype == np.uint8
    assert field[1].dtype == torch.bool and np.array_equal(field[1].numpy(), masks[1])
    assert np.array_equal(field[-1].numpy(), masks[3])
    assert [m.sum().item() for m in field] == masks.sum((1, 2)).tolist()


@pytest.mark.parametrize(
    "item",
    [slice(1, 3), torch.tensor([3, 0]), torch.tensor([True, False, False, True]), np.array([2]), [1, 1]],
    ids=["slice", "indices", "bool", "numpy", "list"],
)
def test_selects_like_a_tensor(masks, item):
    field = RLEMasks(encode_masks(masks), (9, 7))[item]
    assert np.array_equal(np.asarray(field), masks[item.numpy() if isinstance(item, torch.Tensor) else item])


def test_follows_instances(instances, masks):
    chosen = instances[instances.scores < 0.85].to("cpu")
    assert np.array_equal(np.asarray(chosen.pred_masks), masks[1:])
    assert np.array_equal(np.asarray(instances[2].pred_masks), masks[2:3])
    both = Instances.cat([instances[:1], instances[3:]])
    assert np.array_equal(np.asarray(both.pred_masks), masks[[0, 3]])


def test_detectron2_evaluates_and_draws_it(instances, masks):
    annotations = instances_to_coco_json(instances, 5)
    assert [a["segmentation"]["counts"].encode() for a in annotations] == [r["counts"] for r in encode_masks(masks)]
    image = np.zeros((9, 7, 3), np.uint8)
    drawn = Visualizer(image).draw_instance_predictions(instances).get_image()
    assert drawn.any()


def test_no_masks_and_wrong_size():
    assert np.asarray(RLEMasks([], (9, 7))).shape == (0, 9, 7)
    with pytest.raises(ValueError, match=r"size \(2, 3\) among masks of \(9, 7\)"):
        RLEMasks(encode_masks(np.ones((1, 2, 3), bool)), (9, 7))


@pytest.mark.parametrize("chunk_bytes", [1, 500, 10**9])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_same_as_pycocotools(chunk_bytes, dtype):
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((11, 15)) < p for p in (0, 0.1, 0.5, 0.9, 1)])
    masks[1, 0, 0] = True  # starts inside
    masks[2, -1, -1] = True  # ends inside
    assert encode_on_device(torch.from_numpy(masks).to(dtype), chunk_bytes) == encode_masks(masks)


def test_one_row_one_column_and_none():
    for shape in ((1, 7), (7, 1), (1, 1)):
        masks = np.random.default_rng(1).random((4, *shape)) < 0.5
        assert encode_on_device(torch.from_numpy(masks)) == encode_masks(masks)
    assert encode_on_device(torch.zeros(0, 5, 6)) == []


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        encode_on_device(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"at least 1"):
        encode_on_device(torch.zeros(2, 0, 6))


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

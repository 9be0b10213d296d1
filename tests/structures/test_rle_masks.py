"""RLE masks as a field of Instances."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sohes_d2  # noqa: F401  (before detectron2)
from sohes_d2.structures.masks import encode_masks
from sohes_d2.structures.rle_masks import RLEMasks, encode_on_device

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

"""Windows of masks, and their conversion for Detectron2's models."""

from __future__ import annotations

import numpy as np
import torch

from sohes_d2.data.training.labeled_crop import LabeledCrop, MaskWindow


def crop():
    masks = [MaskWindow(np.ones((4, 5), bool), 2, 3), MaskWindow(np.eye(3, dtype=bool), 0, 7)]
    masks.append(MaskWindow(np.pad(np.ones((1, 2), bool), ((2, 1), (1, 3))), 5, 1))
    ancestors = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
    return LabeledCrop(np.zeros((10, 12, 3), np.uint8), masks, ancestors)


def test_instances():
    instances = crop().instances()
    assert instances.image_size == (10, 12)
    assert instances.gt_classes.tolist() == [0, 0, 0] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [[3, 2, 8, 6], [7, 0, 10, 3], [2, 7, 4, 8]]
    assert torch.equal(instances.gt_masks.get_bounding_boxes().tensor, instances.gt_boxes.tensor)
    assert instances.gt_masks.tensor.sum(dim=(1, 2)).tolist() == [20, 3, 2]
    assert instances.gt_masks.tensor[2, 7, 2:4].all()
    assert instances.gt_ancestors.tensor.tolist() == [[False, True, True], [False, False, True], [False] * 3]
    assert instances[torch.tensor([0, 2])].gt_ancestors.tensor.tolist() == [[False, True], [False, False]]


def test_no_masks():
    instances = crop().subset([]).instances()
    assert len(instances) == 0
    assert instances.gt_masks.tensor.shape == (0, 10, 12) and instances.gt_boxes.tensor.shape == (0, 4)
    assert len(instances.gt_ancestors) == 0


def test_subset_keeps_ancestors():
    part = crop().subset([2, 0])
    assert [mask.area for mask in part.masks] == [2, 20]
    assert part.ancestors.tolist() == [[False, False], [True, False]]


def test_without_a_region():
    region = np.zeros((10, 12), bool)
    region[2:4] = True
    mask = crop().masks[0].without(region)
    assert mask.area == 10 and mask.box() == (3, 4, 8, 6)
    region[:] = True
    assert mask.without(region).area == 0 and mask.without(region).box() == (0, 0, 0, 0)

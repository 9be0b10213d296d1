"""Windows of masks, their conversion for Detectron2's models, and copy-paste of whole trees."""

from __future__ import annotations

import numpy as np
import torch

from sohes_d2.data.training.labeled_crop import LabeledCrop, MaskWindow, paste, trees_in_random_order
from sohes_d2.structures.forest import Forest


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


# two trees: 0 -> (1 -> 2, 3) and 4 -> 5; 6 alone
ANCESTORS = Forest([{}] * 7, [-1, 0, 1, 0, -1, 4, -1], (1, 1)).ancestors()


def trees(visible, seed=0):
    return [tree.tolist() for tree in trees_in_random_order(ANCESTORS, visible, np.random.default_rng(seed))]


def test_trees_are_whole():
    assert sorted(trees(np.ones(7, bool))) == [[0, 1, 2, 3], [4, 5], [6]]
    assert {trees(np.ones(7, bool), seed)[0][0] for seed in range(20)} == {0, 4, 6}


def test_invisible_masks_are_skipped():
    visible = np.array([0, 1, 1, 1, 1, 0, 0], bool)  # a part becomes a whole if its whole is invisible
    assert sorted(trees(visible)) == [[1, 2], [3], [4]]
    visible[1] = False  # a grandchild stays in the tree although its parent is gone
    visible[0] = True
    assert sorted(trees(visible)) == [[0, 2, 3], [4]]
    assert trees(np.zeros(7, bool)) == []


def window(y0, y1, x0, x1):
    return MaskWindow(np.ones((y1 - y0, x1 - x0), bool), y0, x0)


def test_occlusion():
    """The target: a chain of three, the middle of which is covered fully; the donor: a whole with a part beside it."""
    chain = np.triu(np.ones((3, 3), bool), 1)
    target = LabeledCrop(
        np.full((20, 20, 3), 10, np.uint8), [window(0, 20, 0, 10), window(5, 9, 2, 8), window(5, 12, 3, 5)], chain
    )
    donor = LabeledCrop(
        np.full((20, 20, 3), 99, np.uint8),
        [window(5, 9, 0, 12), window(6, 10, 11, 14)],
        np.array([[0, 1], [0, 0]], bool),
    )
    result = paste(target, donor, min_area=4)
    covered = np.zeros((20, 20), bool)
    covered[5:9, :12] = covered[6:10, 11:14] = True  # the part of the donor is not inside its whole
    assert (result.image == np.where(covered[..., None], 99, 10)).all()
    assert [mask.area for mask in result.masks] == [200 - 40, 6, 48, 12]
    assert result.masks[1].box() == (3, 9, 5, 12)
    expected = np.zeros((4, 4), bool)
    expected[0, 1] = True  # also through the hidden label
    expected[2, 3] = True
    assert np.array_equal(result.ancestors, expected)
    # the target itself is unchanged
    assert [mask.area for mask in target.masks] == [200, 24, 14] and (target.image == 10).all()


def test_labels_with_a_small_remaining_area_are_dropped():
    target = LabeledCrop(np.zeros((8, 8, 3), np.uint8), [window(0, 4, 0, 4)], np.zeros((1, 1), bool))
    donor = LabeledCrop(np.ones((8, 8, 3), np.uint8), [window(0, 3, 0, 4)], np.zeros((1, 1), bool))
    assert [mask.area for mask in paste(target, donor, min_area=4).masks] == [4, 12]
    assert [mask.area for mask in paste(target, donor, min_area=5).masks] == [12]


def test_nothing_to_paste():
    target = LabeledCrop(np.zeros((8, 8, 3), np.uint8), [window(0, 4, 0, 4)], np.zeros((1, 1), bool))
    assert paste(target, target.subset([]), 4) is target

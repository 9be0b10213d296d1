"""Masks warped from run lengths equal those of Detectron2's transforms, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.data.training.augmentation import training_augmentations
from sohes_d2.data.training.mask_warp import MaskWarp, sample_runs
from sohes_d2.structures.masks import encode_masks, mask_boxes
from sohes_d2.structures.run_lengths import run_lengths

from detectron2.data import transforms as T


def run_ends(rle):
    return np.cumsum(run_lengths(rle["counts"]))


def random_masks(rng, height, width):
    """Noise, stripes over whole columns, one pixel, everything."""
    y, x = np.mgrid[:height, :width]
    masks = [rng.random((height, width)) < 0.5, x % 3 == 0, (y // 4 + x // 5) % 2 == 0, (y == 0) & (x == 0)]
    masks += [np.ones((height, width), bool), (abs(y - height // 2) < 6) & (abs(x - width // 3) < 4)]
    return np.array(masks)


def test_sampled_lines():
    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 40, 2)
        rows = np.sort(rng.integers(0, height, rng.integers(1, 50)))
        columns = rng.integers(0, width, rng.integers(1, 50))
        for mask in random_masks(rng, height, width):
            ends = run_ends(encode_masks([mask])[0])
            for lines in (rows, rows[::-1]):
                assert np.array_equal(sample_runs(ends, height, lines, columns), mask[lines][:, columns])


def dense(window, size):
    full = np.zeros(size, bool)
    window.of(full)[:] = window.mask
    return full


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_same_as_the_transforms_of_the_decoded_mask(flip):
    rng = np.random.default_rng(0)
    np.random.seed(1)  # noqa: NPY002
    padded = cropped = 0
    for _ in range(25):
        height, width = rng.integers(20, 90, 2)
        masks = random_masks(rng, height, width)
        rles = encode_masks(masks)
        inputs = T.AugInput(np.zeros((height, width, 3), np.uint8))
        transforms = T.AugmentationList(training_augmentations(48, 0.3, 2.0, flip))(inputs)
        warp = MaskWarp(transforms, (height, width), (48, 48))
        for mask, rle, window in zip(masks, rles, warp.windows(mask_boxes(rles))):
            result = dense(warp.warp(run_ends(rle), window), (48, 48))
            assert np.array_equal(result, transforms.apply_segmentation(mask.astype(np.uint8)).astype(bool))
        padded += not result.all()
        cropped += window.tolist() != [0, 48, 0, 48]
    assert padded and cropped


def test_windows():
    transforms = T.TransformList([T.ResizeTransform(10, 10, 20, 20), T.CropTransform(4, 6, 8, 8)])
    warp = MaskWarp(transforms, (10, 10), (8, 8))
    # rows 3..7 and columns 2..6 of the source are visible, each enlarged to two
    boxes = np.array([[0, 0, 10, 10], [3, 4, 1, 2], [0, 0, 2, 10], [8, 8, 1, 1]])
    assert warp.windows(boxes).tolist() == [[0, 8, 0, 8], [2, 6, 2, 4], [0, 8, 0, 0], [0, 0, 0, 0]]
    assert warp.windows(np.zeros((0, 4))).shape == (0, 4)


def test_other_transforms_are_applied_to_the_decoded_mask():
    mask = np.zeros((20, 30), bool)
    mask[5:9, 3:20] = True
    rle = encode_masks([mask])[0]
    transforms = T.TransformList([T.RotationTransform(20, 30, 90)])
    warp = MaskWarp(transforms, (20, 30), (30, 20))
    (window,) = warp.windows(mask_boxes([rle]))
    result = dense(warp.warp(run_ends(rle), window), (30, 20))
    assert np.array_equal(result, transforms.apply_segmentation(mask.astype(np.uint8)).astype(bool))
    assert abs(int(result.sum()) - 68) < 22  # rotated, not lost

"""Geometric augmentation of images, with both Detectron2 code bases, and of masks from their run lengths."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.data.training.augmentation import (
    LargeScaleJitter,
    MaskWarp,
    inference_augmentations,
    sample_runs,
    training_augmentations,
)
from sohes_d2.structures.masks import encode_masks, mask_boxes
from sohes_d2.structures.run_lengths import run_lengths

from detectron2.data import transforms as T


def apply(augmentations, image):
    inputs = T.AugInput(image)
    transforms = T.AugmentationList(augmentations)(inputs)
    return inputs.image, transforms


def gradient(height, width):
    """Red is the row, green the column."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(height)[:, None], np.arange(width)
    return image


def test_small_images_are_padded_to_the_right_and_below():
    np.random.seed(0)  # noqa: NPY002
    image, transforms = apply(training_augmentations(32, 0.5, 0.5, "none"), np.full((40, 20, 3), 7, np.uint8))
    assert image.shape == (32, 32, 3)
    assert (image[:16, :8] == 7).all()
    assert (image[16:] == 128).all() and (image[:, 8:] == 128).all()
    mask = transforms.apply_segmentation(np.ones((40, 20), np.uint8))
    assert mask.sum() == 16 * 8 and mask[:16, :8].all()


def test_large_images_are_cropped_anywhere():
    """The offsets of the two axes are independent."""
    np.random.seed(0)  # noqa: NPY002
    offsets = np.array(
        [apply(training_augmentations(50, 2.0, 2.0, "none"), gradient(50, 50))[0][0, 0, :2] for _ in range(60)]
    )
    assert offsets.max(axis=0).min() > 18 and offsets.min(axis=0).max() < 7
    assert abs(np.corrcoef(offsets.T.astype(float))[0, 1]) < 0.4


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # from fvcore, which only reads it
def test_flips():
    source = gradient(30, 30)
    seen = set()
    np.random.seed(0)  # noqa: NPY002
    for _ in range(20):
        image, _ = apply(training_augmentations(30, 1.0, 1.0, "horizontal"), source)
        flipped = bool(image[0, 0, 1])
        assert np.array_equal(image, source[:, ::-1] if flipped else source)
        seen.add(flipped)
    assert seen == {False, True}
    turned = [apply(training_augmentations(30, 1.0, 1.0, "vertical"), source)[0] for _ in range(20)]
    assert {int(image[0, 0, 0]) for image in turned} == {0, 29}


def test_a_panorama_keeps_at_least_one_row():
    np.random.seed(0)  # noqa: NPY002
    transform = LargeScaleJitter(0.1, 0.1, 64, 64).get_transform(np.zeros((4, 400, 3), np.uint8))
    assert (transform.new_h, transform.new_w) == (1, 6)
    assert transform.apply_image(np.zeros((4, 400, 3), np.uint8)).shape == (1, 6, 3)


def test_inference_sizes():
    assert apply(inference_augmentations(20, 50), gradient(40, 60))[0].shape == (20, 30, 3)
    assert apply(inference_augmentations(20, 25), gradient(40, 80))[0].shape == (13, 25, 3)
    assert apply(inference_augmentations(0, 25), gradient(40, 80))[0].shape == (40, 80, 3)


@pytest.mark.parametrize("settings", [(32, 0.0, 1.0), (32, 2.0, 1.0), (32, 0.1, 1.0, "sideways")])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="INPUT."):
        training_augmentations(*settings)


def test_inference_size_for_crops():
    assert apply(inference_augmentations(20, 50, 1.75), gradient(40, 60))[0].shape == (35, 53, 3)
    with pytest.raises(ValueError, match=r"TEST\.CROPS\.LAYERS"):
        inference_augmentations(0, 50, 1.75)


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

"""Geometric augmentation of training images, with both Detectron2 code bases."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.data.training.augmentation import (
    LargeScaleJitter,
    inference_augmentations,
    training_augmentations,
)

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

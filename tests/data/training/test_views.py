"""The strong view: effect of each operation, without geometric changes."""

from __future__ import annotations

from itertools import islice

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from sohes_d2 import add_sohes_config
from sohes_d2.data.loaders import build_training_loader
from sohes_d2.data.training.augmentation import PAD_VALUE
from sohes_d2.data.training.mapper import PseudoLabelDatasetMapper
from sohes_d2.data.training.views import (
    StrongView,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    needs_teacher_view,
    turn_hue,
)
from sohes_d2.structures.masks import encode_masks, rle_to_json

from detectron2.config import get_cfg
from detectron2.data import transforms as T

SIZE = (48, 64)
OFF = {"jitter_probability": 0, "grey_probability": 0, "blur_probability": 0, "erase_probability": 0}


def photo(seed=0, size=SIZE):
    """A photo-like image of smooth colours that use the whole value range."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def view(image, seed=0, **settings):
    return StrongView(**{**OFF, **settings})(image, np.random.default_rng(seed))


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (adjust_brightness, F.adjust_brightness),
        (adjust_contrast, F.adjust_contrast),
        (adjust_saturation, F.adjust_saturation),
    ],
)
@pytest.mark.parametrize("amount", [0.6, 1.0, 1.4])
def test_colours_are_those_of_torchvision(ours, theirs, amount):
    """Up to one level, since torchvision truncates where OpenCV rounds."""
    image = photo()
    expected = theirs(torch.from_numpy(image).permute(2, 0, 1), amount).permute(1, 2, 0).numpy()
    assert difference(ours(image, amount), expected).max() <= 1
    assert (difference(ours(image, amount), image).mean() > 5) == (amount != 1)


@pytest.mark.parametrize("turn", [-0.1, 0.04, 0.5])
def test_hue_is_that_of_torchvision(turn):
    image = photo()
    expected = F.adjust_hue(torch.from_numpy(image).permute(2, 0, 1), turn).permute(1, 2, 0).numpy()
    assert difference(turn_hue(image, turn), expected).max() <= 8
    assert difference(turn_hue(image, turn), expected).mean() < 1 < difference(image, expected).mean()
    assert np.array_equal(turn_hue(image, 0.0), image)


def test_brightness_by_hand():
    image = np.full((2, 2, 3), (100, 200, 255), np.uint8)
    assert adjust_brightness(image, 1.4)[0, 0].tolist() == [140, 255, 255]
    assert adjust_brightness(image, 0.6)[1, 1].tolist() == [60, 120, 153]


def test_grey():
    grey = view(photo(), grey_probability=1)
    assert (grey[:, :, 0] == grey[:, :, 1]).all() and (grey[:, :, 0] == grey[:, :, 2]).all()
    expected = photo() @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey[:, :, 0] - expected).max() < 1


def test_blur_is_a_gaussian():
    image = np.zeros((31, 31, 3), np.uint8)
    image[15, 15] = 255
    blurred = view(image, blur_probability=1, blur_sigma=(1.5, 1.5))[:, :, 1]
    y, x = np.mgrid[-15:16, -15:16]
    expected = 255 * np.exp(-(y**2 + x**2) / (2 * 1.5**2)) / (2 * np.pi * 1.5**2)
    assert np.abs(blurred - expected).max() < 1
    assert blurred[15, 15] == 18


@pytest.mark.parametrize("seed", range(5))
def test_erasing_touches_one_rectangle(seed):
    image = photo(size=(100, 150))
    erased = view(image, seed, erase_probability=1, erase_count=1, erase_area_ratio=(0.05, 0.1))
    changed = (erased != image).any(axis=2)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert 0.045 <= h * w / changed.size <= 0.105
    assert 0.28 <= h / w <= 3.5
    inside = erased[rows[0] : rows[0] + h, columns[0] : columns[0] + w]
    assert changed.sum() > 0.999 * h * w  # noise equals the old colour with a probability of 2**-24
    assert abs(inside.mean() - 127.5) < 8 and abs(inside.std() - 73.9) < 5


def test_how_many_rectangles_and_where():
    """Number and position of rectangles of 1/50 of a black square, over many draws."""
    black = np.zeros((60, 60, 3), np.uint8)
    strong = StrongView(**{**OFF, "erase_probability": 0.5}, erase_count=3, erase_area_ratio=(0.02, 0.02))
    rng = np.random.default_rng(0)
    erased = np.array([strong(black, rng).any(axis=2) for _ in range(600)])
    share = erased.mean(axis=(1, 2))
    assert abs((share == 0).mean() - 0.5) < 0.06
    assert abs(share[share > 0].mean() - 0.04 * 0.98) < 0.003  # two on average, some overlap
    assert 0.055 < share.max() <= 0.0665  # never more than three
    heat = erased.mean(axis=0)
    assert abs(heat[:30].sum() / heat.sum() - 0.5) < 0.05 and abs(heat[:, :30].sum() / heat.sum() - 0.5) < 0.05


def test_a_rectangle_larger_than_a_side_is_clipped():
    for seed in range(20):
        assert view(np.zeros((2, 50, 3), np.uint8), seed, erase_probability=1, erase_area_ratio=(0.9, 1.0)).any()
        assert view(np.zeros((1, 1, 3), np.uint8), seed, erase_probability=1, erase_area_ratio=(0.01, 0.01)).any()


def test_probabilities():
    """Probabilities of grey, and of jitter with its four operations in any order."""
    image = photo(size=(4, 4))
    strong = StrongView(**{**OFF, "grey_probability": 0.2})
    rng = np.random.default_rng(0)
    grey = np.mean([not np.array_equal(strong(image, rng), image) for _ in range(1000)])
    assert abs(grey - 0.2) < 0.04
    strong = StrongView(**{**OFF, "jitter_probability": 0.8})
    jittered = [strong(image, rng) for _ in range(1000)]
    assert abs(np.mean([not np.array_equal(j, image) for j in jittered]) - 0.8) < 0.04


def test_range_of_the_jitter():
    """On uniform grey only brightness changes the level; on uniform red the hue raises one of the other channels."""
    grey = np.full((3, 3, 3), 100, np.uint8)
    strong = StrongView(**{**OFF, "jitter_probability": 1}, jitter=0.4)
    rng = np.random.default_rng(0)
    levels = np.array([strong(grey, rng)[0, 0, 0] for _ in range(300)])
    assert 60 <= levels.min() <= 62 and 138 <= levels.max() <= 140
    red = np.full((3, 3, 3), (255, 0, 0), np.uint8)
    strong = StrongView(**{**OFF, "jitter_probability": 1}, jitter=0, hue=0.1)
    red_green_blue = np.array([strong(red, rng)[0, 0] for _ in range(300)])
    assert (red_green_blue[:, 0] == 255).all()
    # a hue shift of 1/6 would raise a second channel to 255, so 0.1 raises it to 153
    assert (145 <= red_green_blue[:, 1:].max(axis=0)).all() and (red_green_blue[:, 1:].max(axis=0) <= 157).all()


def test_the_input_image_is_unchanged():
    image = photo()
    before = image.copy()
    for given in (image, image[:, ::-1]):  # negative strides, as after a flip
        strong = StrongView(jitter_probability=1, grey_probability=1, blur_probability=1, erase_probability=1)
        result = strong(given, np.random.default_rng(0))
        assert result.shape == given.shape and result.dtype == np.uint8 and not np.shares_memory(result, given)
    assert np.array_equal(image, before)
    assert np.array_equal(view(image), image) and not np.shares_memory(view(image), image)


def test_randomness_comes_only_from_the_generator():
    image = photo()
    strong = StrongView()
    first = [strong(image, np.random.default_rng(seed)) for seed in range(8)]
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    again = [strong(image, np.random.default_rng(seed)) for seed in range(8)]
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert len({a.tobytes() for a in first}) == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("jitter", 1.1),
        ("hue", 0.6),
        ("jitter_probability", -0.1),
        ("grey_probability", 2),
        ("blur_probability", 1.01),
        ("blur_sigma", (0, 1)),
        ("blur_sigma", (2, 1)),
        ("erase_probability", -1),
        ("erase_count", 0),
        ("erase_area_ratio", (0.1, 1.5)),
        ("erase_area_ratio", (0.2, 0.1)),
    ],
)
def test_settings_out_of_range(key, value):
    with pytest.raises(ValueError, match=rf"CORRECTION.VIEWS.{key.upper()} must be"):
        StrongView(**{key: value})


# ----------------------------------------------------------------------------------------------------------------------
# In the mapper


def config(teacher=True, **views):
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.INPUT.FORMAT, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_LABEL_AREA = "RGB", 64, 1
    cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE = 0.5, 2.0
    cfg.MODEL.META_ARCHITECTURE = "SOHESMutualLearning" if teacher else "SOHES"
    for key, value in views.items():
        cfg.CORRECTION.VIEWS[key.upper()] = value
    return cfg


def record(path, pixels, masks):
    Image.fromarray(pixels).save(path)
    annotations = [{"id": 1 + k, "segmentation": rle_to_json(rle)} for k, rle in enumerate(encode_masks(masks))]
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    return {"file_name": str(path), "image_id": 5, **size, "annotations": annotations}


@pytest.fixture
def given(tmp_path):
    return record(tmp_path / "a.png", photo(), np.random.default_rng(1).random((5, *SIZE)) < 0.3)


def sample_of(mapper, given, seed):
    np.random.seed(seed)  # noqa: NPY002
    return mapper(given)


def masks_of(sample):
    return sample["instances"].gt_masks.tensor


def test_settings_come_from_the_config():
    cfg = config(jitter=0.3, hue=0.2, blur_sigma=[0.5, 0.7], erase_area_ratio=[0.01, 0.03], erase_count=7)
    strong = PseudoLabelDatasetMapper(cfg, is_train=True).views
    assert (strong.jitter, strong.hue, strong.blur_sigma) == (0.3, 0.2, (0.5, 0.7))
    assert (strong.erase_area_ratio, strong.erase_count) == ((0.01, 0.03), 7)
    assert (strong.jitter_probability, strong.grey_probability) == (0.8, 0.2)
    assert (strong.blur_probability, strong.erase_probability) == (0.5, 0.5)
    assert PseudoLabelDatasetMapper(cfg, is_train=False).views is None
    assert needs_teacher_view(cfg) and not needs_teacher_view(config(teacher=False))
    assert PseudoLabelDatasetMapper(config(teacher=False), is_train=True).views is None


def test_without_strong_operations_both_views_equal_that_of_phase_2(given):
    plain = PseudoLabelDatasetMapper(config(teacher=False), is_train=True)
    off = PseudoLabelDatasetMapper(config(**OFF), is_train=True)
    on = PseudoLabelDatasetMapper(config(), is_train=True)
    different = 0
    for seed in range(12):
        expected, same, strong = (sample_of(m, given, seed) for m in (plain, off, on))
        assert "image_weak" not in expected
        for sample in (same, strong):
            assert torch.equal(sample["image_weak"], expected["image"])
            assert torch.equal(masks_of(sample), masks_of(expected))
            assert sample["image"].shape == (3, 64, 64) and sample["image"].dtype == torch.uint8
        assert torch.equal(same["image"], expected["image"])
        different += not torch.equal(strong["image"], expected["image"])
    assert different >= 10


def test_the_photo_ends_where_the_padding_begins(given):
    mapper = PseudoLabelDatasetMapper(config(**OFF), is_train=True)
    padded = 0
    for seed in range(12):
        sample = sample_of(mapper, given, seed)
        height, width = sample["photo_size"]
        is_padding = (sample["image_weak"] == PAD_VALUE).all(dim=0)
        assert is_padding[height:].all() and is_padding[:, width:].all()
        assert not is_padding[height - 1, :width].all() and not is_padding[:height, width - 1].all()
        padded += height * width < is_padding.numel()
    assert 2 < padded < 12


def test_with_erasing_alone_the_views_differ_in_a_rectangle(given):
    mapper = PseudoLabelDatasetMapper(
        config(**{**OFF, "erase_probability": 1}, erase_count=1, erase_area_ratio=[0.05, 0.05]), is_train=True
    )
    for seed in range(12):
        sample = sample_of(mapper, given, seed)
        changed = (sample["image"] != sample["image_weak"]).any(dim=0).numpy()
        box = np.ptp(np.flatnonzero(changed.any(axis=1))) + 1, np.ptp(np.flatnonzero(changed.any(axis=0))) + 1
        assert changed.sum() >= box[0] * box[1] - 1
        assert abs(changed.mean() - 0.05) < 0.01


@pytest.mark.parametrize("geometry", ["flip", "crop", "pad"])
def test_both_views_and_the_masks_align(tmp_path, geometry):
    """In both views, the bright pixels are those of the mask."""
    mask = np.zeros(SIZE, bool)
    mask[5:20, 8:30] = mask[30:40, 50:] = True
    pixels = np.where(mask[:, :, None], (230, 200, 180), (20, 40, 10)).astype(np.uint8)
    given = record(tmp_path / "b.png", pixels, mask[None])
    transform = {
        "flip": T.HFlipTransform(SIZE[1]),
        "crop": T.CropTransform(11, 7, 45, 30),
        "pad": T.PadTransform(0, 0, 6, 9, SIZE[1], SIZE[0], pad_value=0),
    }[geometry]
    strong = StrongView(jitter_probability=1, grey_probability=0.5, blur_probability=1, blur_sigma=(0.1, 0.5),
                        erase_probability=0)  # fmt: skip
    mapper = PseudoLabelDatasetMapper(is_train=True, augmentations=[transform], min_label_area=1, views=strong)
    for seed in range(10):
        sample = sample_of(mapper, given, seed)
        (expected,) = masks_of(sample)
        for name in ("image", "image_weak"):
            level = sample[name].float().mean(dim=0)
            assert torch.equal(level > (level.min() + level.max()) / 2, expected)
        assert not torch.equal(sample["image"], sample["image_weak"])


def test_channel_order(given):
    """Operations are applied in RGB, before the channels are swapped."""
    cfg = config()
    rgb = sample_of(PseudoLabelDatasetMapper(cfg, is_train=True), given, 3)
    cfg.INPUT.FORMAT = "BGR"
    bgr = sample_of(PseudoLabelDatasetMapper(cfg, is_train=True), given, 3)
    for name in ("image", "image_weak"):
        assert torch.equal(rgb[name], bgr[name].flip(0)) and not torch.equal(rgb[name], bgr[name])


def test_views_depend_only_on_the_position(given):
    cfg = config()
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH = 3, 2

    def views(workers, start=0):
        cfg.DATALOADER.NUM_WORKERS = workers
        mapper = PseudoLabelDatasetMapper(cfg, is_train=True)
        batches = islice(build_training_loader(cfg, mapper, [given] * 3, start), 5 - start)
        return [s[name].numpy().tobytes() for batch in batches for s in batch for name in ("image", "image_weak")]

    whole = views(workers=0)
    assert len(whole) == 20 and len(set(whole)) > 15
    assert views(workers=2) == whole and views(workers=0, start=2) == whole[8:]


def test_each_worker_uses_one_opencv_thread(given):
    cfg = config()
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 3, 1, 1
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        loader = build_training_loader(cfg, lambda record: {"threads": cv2.getNumThreads()}, [given])
        assert next(iter(loader)) == [{"threads": 1}]
        assert cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)

"""Photos and their crops: reading, and views that match their boxes."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from helpers.tiny_pretraining import write_photos
from PIL import Image

from sohes_d2.data.loaders import seeded
from sohes_d2.data.training.views import StrongView
from sohes_d2.errors import InputError
from sohes_d2.pretraining.views import MultiCrop, PhotoStore, list_photos, overlap, sample_box


def test_several_folders_follow_each_other(tmp_path):
    first, _ = write_photos(tmp_path / "a", 2)
    second, _ = write_photos(tmp_path / "b", 1)
    names = [record["file_name"] for record in list_photos([str(second), str(first)])]
    assert names == [str(second / "00.png"), str(first / "00.png"), str(first / "01.png")]
    with pytest.raises(InputError, match="does not exist"):
        list_photos([str(first), str(tmp_path / "none")])


def test_photos_are_downsized_cached_and_broken_ones_reported(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 90, np.uint8)).save(path)
    store = PhotoStore(side=20, megabytes=1)
    image = store(str(path))
    assert image.shape == (20, 30, 3) and (image == 90).all()
    path.unlink()
    assert store(str(path)) is image  # cached
    with pytest.raises(InputError, match="does not exist"):
        PhotoStore(side=20, megabytes=1)(str(path))
    Image.fromarray(np.zeros((600, 700, 3), np.uint8)).save(path)
    forgetful = PhotoStore(side=0, megabytes=1)  # 1.26 million bytes do not fit
    assert forgetful(str(path)) is not forgetful(str(path))
    assert forgetful(str(path)).shape == (600, 700, 3)


def test_overlap_by_hand():
    assert overlap((0, 0, 10, 10), (5, 5, 15, 15)) == 0.25
    assert overlap((0, 0, 10, 10), (2, 2, 4, 4)) == 1.0
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0


def test_boxes_have_their_share_of_the_photo_and_are_inside():
    rng = np.random.default_rng(0)
    boxes = np.array([sample_box((300, 400), (0.1, 0.3), rng) for _ in range(300)])
    shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (300 * 400)
    assert shares.min() > 0.098 and shares.max() < 0.302
    assert shares.mean() == pytest.approx(0.2, abs=0.01)
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 300 and boxes[:, 3].max() <= 400
    assert sample_box((2, 500), (1.0, 1.0), rng)[::2] == (0, 2)  # clipped to the photo


def ramp() -> np.ndarray:
    y, x = np.mgrid[:120, :200]
    return np.stack([y, x, np.zeros_like(x)], axis=-1).astype(np.uint8)


def crops(**settings) -> MultiCrop:
    defaults = {"read": lambda _: ramp(), "global_size": 32, "local_size": 16, "local_count": 3}
    return MultiCrop(**{**defaults, **settings})


def test_views_show_the_content_of_their_boxes():
    multi_crop = crops(min_overlap=0.4)
    for seed in range(20):
        with seeded(seed):
            sample = multi_crop({"file_name": "ramp"})
        assert sample["global"].shape == (2, 3, 32, 32) and sample["global"].dtype == torch.uint8
        assert sample["local"].shape == (3, 3, 16, 16)
        assert overlap(*sample["boxes"].tolist()) >= 0.4
        for view, box, flip in zip(sample["global"], sample["boxes"].int().tolist(), sample["flips"]):
            y0, x0, y1, x1 = box
            expected = cv2.resize(ramp()[y0:y1, x0:x1], (32, 32), interpolation=cv2.INTER_AREA)
            if min(y1 - y0, x1 - x0) < 32:
                expected = cv2.resize(ramp()[y0:y1, x0:x1], (32, 32), interpolation=cv2.INTER_LINEAR)
            expected = expected[:, ::-1] if flip else expected
            assert (view.permute(1, 2, 0).numpy() == expected).all()


def test_randomness_depends_only_on_the_seed():
    multi_crop = crops(appearance=StrongView(erase_probability=0.0))
    samples = []
    for seed in (1, 1, 2):
        with seeded(seed):
            samples.append(multi_crop({"file_name": "ramp"}))
    assert all(torch.equal(samples[0][key], samples[1][key]) for key in samples[0])
    assert not torch.equal(samples[0]["global"], samples[2]["global"])


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (0.5,)])
def test_invalid_scales_are_refused(scale):
    with pytest.raises(ValueError, match="GLOBAL_SCALE.*0 < from <= to <= 1"):
        crops(global_scale=scale)

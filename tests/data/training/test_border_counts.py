"""Training targets of the border network."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import sohes_d2  # noqa: F401
from sohes_d2.data.training.border_counts import OUTSIDE, BorderCountMapper, border_counts
from sohes_d2.errors import InputError
from sohes_d2.structures.masks import encode_masks
from sohes_d2.structures.run_lengths import run_lengths


def counted(masks):
    """Reference implementation on dense masks."""
    height, width = masks.shape[1:]
    counts = np.zeros((height, width), np.int64)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    counts[y, x] = max(counts[y, x], (masks[:, y, x] != masks[:, y + dy, x + dx]).sum())
    return counts


def test_counts_of_random_masks():
    rng = np.random.default_rng(0)
    for _ in range(60):
        size = tuple(rng.integers(1, 8, 2))
        masks = rng.random((rng.integers(1, 6), *size)) < rng.random()
        ends = [np.cumsum(run_lengths(mask["counts"])) for mask in encode_masks(masks)]
        assert np.array_equal(border_counts(ends, size), counted(masks))


@pytest.fixture()
def photo(tmp_path):
    """(dataset dict, photo, dense counts) of a photo of 12 x 20 pixels whose left half has two masks."""
    image = np.random.default_rng(1).integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    masks = np.zeros((2, 12, 20), bool)
    masks[:, :, :10] = True
    annotations = [
        {"segmentation": {"size": [12, 20], "counts": rle["counts"].decode()}, "id": k + 1, "iscrowd": 0, "score": 0.5}
        for k, rle in enumerate(encode_masks(masks))
    ]
    json.dumps(annotations)
    record = {"file_name": str(tmp_path / "a.png"), "height": 12, "width": 20, "annotations": annotations}
    return record, image, counted(masks)


def test_photo_and_counts_of_a_crop_are_aligned(photo):
    record, image, counts = photo
    mapper = BorderCountMapper(crop_size=8)
    seen = set()
    for seed in range(30):
        np.random.seed(seed)  # noqa: NPY002 (the mapper draws from it)
        sample = mapper(record)
        shown, target = sample["image"].numpy().transpose(1, 2, 0), sample["border_counts"].numpy()
        places = [
            (y, x, flip)
            for y in range(5)
            for x in range(13)
            for flip in (False, True)
            if np.array_equal(shown[:, ::-1] if flip else shown, image[y : y + 8, x : x + 8])
        ]
        ((y, x, flip),) = places
        assert np.array_equal(target[:, ::-1] if flip else target, counts[y : y + 8, x : x + 8])
        seen.add(flip)
    assert seen == {False, True}


def test_a_small_photo_is_padded_and_a_large_one_downsized(photo):
    record, image, counts = photo
    sample = BorderCountMapper(crop_size=32, image_format="BGR")(record)
    assert sample["image"].shape == (3, 32, 32)
    target = sample["border_counts"]
    assert (target != OUTSIDE).sum() == 12 * 20 and (target == 2).sum() == 2 * 12 == (counts == 2).sum()
    assert set(sample["image"][2, :12, :20].numpy().ravel()) == set(image[:, :, 0].ravel())
    # downsizing keeps the counts of borders
    reduced = BorderCountMapper(crop_size=6, max_pixels=6 * 10)._read(record)
    assert reduced[0].shape == (6, 10, 3) and (reduced[1].max(axis=1) == 2).all()


def test_photos_are_cached_up_to_the_limit(photo, monkeypatch):
    record, *_ = photo
    reads = []
    kept, forgetful = BorderCountMapper(crop_size=8), BorderCountMapper(crop_size=8, cache_megabytes=0)
    for mapper in (kept, forgetful):
        read = mapper._read
        monkeypatch.setattr(mapper, "_read", lambda *args, read=read: reads.append(1) or read(*args))
        for _ in range(3):
            mapper(record)
    assert len(reads) == 1 + 3


def test_unusable_inputs_are_refused(photo, tmp_path):
    record, *_ = photo
    mapper = BorderCountMapper(crop_size=8)
    for change, words in (
        ({"file_name": str(tmp_path / "none.png")}, "none.png"),
        ({"height": 13}, "Restore it or label it again"),
        ({"annotations": []}, "no usable label"),
    ):
        with pytest.raises(InputError, match=words):
            mapper({**record, **change})
    for options in ({"crop_size": 1}, {"image_format": "HSV"}, {"max_pixels": -1}):
        with pytest.raises(ValueError):
            BorderCountMapper(**options)
    assert isinstance(mapper(record)["image"], torch.Tensor)

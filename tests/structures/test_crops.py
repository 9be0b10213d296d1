"""Crop layers: positions of the crops, and selection of their masks."""

from __future__ import annotations

import numpy as np
import pytest

from sohes_d2.structures.crops import CropLayers, window_of
from sohes_d2.structures.masks import decode_mask, encode_masks


@pytest.mark.parametrize("size", [(96, 144), (97, 131), (5, 400), (1, 1)])
def test_crops_of_a_layer_have_one_size_and_cover_the_image(size):
    crops = CropLayers(layers=2, overlap=0.25)
    seen, layers = crops.boxes(size)
    assert [len(boxes) for boxes in layers] == [1, 4, 16]
    assert layers[0] == [(0, 0, *size)]
    assert seen == tuple(max(1, round(side / 3.25)) for side in size), "4 crops of which 3 begin a quarter earlier"
    for boxes in layers:
        covered = np.zeros(size, int)
        assert len({(y1 - y0, x1 - x0) for y0, x0, y1, x1 in boxes}) == 1
        for y0, x0, y1, x1 in boxes:
            assert 0 <= y0 < y1 <= size[0] and 0 <= x0 < x1 <= size[1]
            covered[y0:y1, x0:x1] += 1
        assert covered.min() >= 1


def test_neighbouring_crops_share_the_overlap():
    _, layers = CropLayers(layers=1, overlap=0.25).boxes((175, 350))
    assert layers[1] == [(0, 0, 100, 200), (0, 150, 100, 350), (75, 0, 175, 200), (75, 150, 175, 350)]
    assert CropLayers(layers=1, overlap=0.0).boxes((100, 100))[1][1][3] == (50, 50, 100, 100)
    assert CropLayers(layers=2, overlap=0.25).scale == 3.25
    assert CropLayers().scale == 1


def test_windows_of_crops_have_whole_pixels_inside_the_photo():
    assert window_of((0, 150, 100, 350), (175, 350), (350, 700)) == (0, 300, 200, 700)
    assert window_of((0, 1, 1, 2), (2, 2), (1, 1)) == (0, 0, 1, 1), "never empty"


def test_masks_cut_by_a_crop_are_dropped_and_others_placed():
    masks = np.zeros((4, 20, 20), bool)
    masks[0, 5:9, 6:10] = True  # inside
    masks[1, 0:4, 5:9] = True  # at the photo's own upper side
    masks[2, 5:9, 15:20] = True  # cut by the crop's right side
    masks[3, 15:19, 5:9] = True  # 1 pixel from the lower side
    window, photo = (0, 30, 20, 50), (40, 80)
    kept, placed = CropLayers(layers=1, margin=1).place(encode_masks(masks), window, photo, seen=(10, 10))
    assert kept.tolist() == [0, 1], "a margin of 1 pixel of the input is 2 of the window"
    for k, rle in zip(kept, placed):
        expected = np.zeros(photo, bool)
        expected[0:20, 30:50] = masks[k]
        assert np.array_equal(decode_mask(rle).astype(bool), expected)
    assert CropLayers(margin=0).place(encode_masks(masks), window, photo, (10, 10))[0].tolist() == [0, 1, 2, 3]
    at_left = CropLayers(margin=1).place(encode_masks(masks[2:3, :, ::-1]), window, photo, (10, 10))[0]
    assert at_left.tolist() == [], "cut by its left side"


def test_the_whole_photo_cuts_nothing():
    masks = encode_masks(np.ones((1, 6, 8), bool))
    kept, placed = CropLayers(layers=1).place(masks, (0, 0, 6, 8), (6, 8), (6, 8))
    assert kept.tolist() == [0] and placed == masks


@pytest.mark.parametrize(
    "wrong", [{"layers": -1}, {"layers": 5}, {"overlap": 1.0}, {"margin": -1}, {"nms_threshold": 0}, {"batch_size": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="TEST.CROPS"):
        CropLayers(**wrong)

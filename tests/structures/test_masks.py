"""Masks as run lengths: exact overlaps, windows, and bounded memory."""

from __future__ import annotations

import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from sohes_d2.errors import RecordError
from sohes_d2.structures.masks import (
    coverage_matrix,
    decode_mask,
    decode_masks,
    encode_masks,
    encode_window,
    iou_matrix,
    mask_areas,
    mask_boxes,
    rle_from_coco,
    rle_to_json,
    union_area,
)


def random_masks(count: int, height: int = 13, width: int = 17, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, height, width)) > 0.6


def test_round_trip_from_arrays_tensors_and_generators():
    masks = random_masks(5)
    for source in (masks, torch.from_numpy(masks), masks.astype(np.float32) * 3, (mask for mask in masks)):
        assert np.array_equal(decode_masks(encode_masks(source)), masks)
    assert encode_masks(masks, chunk_bytes=1) == encode_masks(masks)
    assert encode_masks([]) == []
    assert decode_masks([]).shape == (0, 0, 0)
    with pytest.raises(ValueError, match="must be"):
        encode_masks(masks[0])


def test_encoding_many_masks_needs_memory_only_for_a_chunk():
    tracemalloc.start()
    # 60 masks of 1500 x 2250 are 200 MB as bytes; a generator is encoded in chunks.
    rles = encode_masks((np.zeros((1500, 2250), bool) for _ in range(60)), chunk_bytes=2**24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rles) == 60
    assert peak < 2**26


def test_areas_and_boxes_of_many_masks():
    masks = random_masks(600, 7, 5)  # more than the 255 that pycocotools takes at once
    masks[3] = False
    rles = encode_masks(masks)
    assert mask_areas(rles).tolist() == masks.sum(axis=(1, 2)).tolist()
    box = np.zeros((20, 30), bool)
    box[4:9, 6:8] = True
    assert mask_boxes(encode_masks([box])).tolist() == [[6, 4, 2, 5]]
    assert mask_areas([]).shape == (0,)
    assert mask_boxes([]).shape == (0, 4)


def test_overlaps_equal_the_plain_formulas():
    a, b = random_masks(4), random_masks(3, seed=1)
    a[2] = False
    shared = (a[:, None] & b[None]).sum(axis=(2, 3))
    union = (a[:, None] | b[None]).sum(axis=(2, 3))
    areas = np.maximum(a.sum(axis=(1, 2)), 1)[:, None]
    np.testing.assert_allclose(coverage_matrix(encode_masks(a), encode_masks(b)), shared / areas)
    np.testing.assert_allclose(iou_matrix(encode_masks(a), encode_masks(b)), shared / union)
    assert coverage_matrix([], encode_masks(b)).shape == (0, 3)


@pytest.mark.parametrize("seed", range(20))
def test_a_window_is_encoded_like_the_whole_mask(seed):
    generator = np.random.default_rng(seed)
    height, width = generator.integers(1, 12, 2)
    y0, x0 = generator.integers(0, height), generator.integers(0, width)
    y1, x1 = generator.integers(y0, height) + 1, generator.integers(x0, width) + 1
    if seed % 3 == 0:
        y0, y1 = 0, height  # runs that continue in the next column
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = generator.random((y1 - y0, x1 - x0)) > (0.0 if seed == 6 else 0.3)
    assert encode_window(mask[y0:y1, x0:x1], (y0, x0), (height, width)) == encode_masks([mask])[0]


def test_a_window_must_lie_inside():
    with pytest.raises(ValueError, match="leaves the image"):
        encode_window(np.ones((3, 3), bool), (8, 0), (10, 10))


def test_coco_segmentations_of_every_kind():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    rle = encode_masks([mask])[0]
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.r_[0, changes, flat.size]).tolist()
    for segmentation in (
        rle,
        rle_to_json(rle),
        {"size": [6, 8], "counts": counts},
        [[2, 1, 7, 1, 7, 4, 2, 4]],
    ):
        assert np.array_equal(decode_mask(rle_from_coco(segmentation, (6, 8))), mask)
    with pytest.raises(ValueError, match="its image is"):
        rle_from_coco(rle, (8, 6))
    with pytest.raises(ValueError, match="empty list"):
        rle_from_coco([], (6, 8))
    with pytest.raises(ValueError, match="not a COCO segmentation"):
        rle_from_coco("abc", (6, 8))


SQUARE = [2, 3, 12, 3, 12, 13, 2, 13]
POINTS = [[2, 3], [12, 3], [12, 13], [2, 13]]


@pytest.mark.parametrize(
    "segmentation",
    [[SQUARE], SQUARE, POINTS, [POINTS], [tuple(SQUARE)], [np.array(SQUARE)], [[float(v) for v in SQUARE]]],
    ids=["flat lists", "one flat list", "points", "lists of points", "tuple", "array", "floats"],
)
def test_all_common_forms_of_polygons_are_read(segmentation):
    mask = np.zeros((20, 30), bool)
    mask[3:13, 2:12] = True
    assert rle_from_coco(segmentation, (20, 30)) == encode_masks([mask])[0]


def test_numbers_of_an_rle_may_be_whole_floats():
    rle = rle_from_coco({"size": [4.0, 5], "counts": [3.0, 2, 15]}, (4, 5))
    assert mask_areas([rle]).tolist() == [2]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (None, "no segmentation"),
        ("mask", "no segmentation"),
        ([], "no segmentation"),
        ({"size": [20, 30]}, "no segmentation"),
        ([[]], "polygon"),
        ([None], "polygon"),
        ([SQUARE, [1, 1, 5, 5]], "polygon"),  # pycocotools gives no mask
        ([[1, 1, 5, 5], SQUARE], "polygon"),  # pycocotools reads boxes
        ([[*SQUARE, 7]], "polygon"),
        ([[1, 1, 5, 5, 7, "x"]], "polygon"),
        ([[1, 1, 5, 5, 7, True]], "polygon"),
        ([[1, 1, 5, 5, 7, None]], "polygon"),
        ([[[1, 1], [5, 5], [7]]], "polygon"),
        ([[1, 1, 5, 5, 7, float("nan")]], "polygon far outside"),
        ([[1, 1, 5, 5, 7, float("inf")]], "polygon far outside"),
        ([[1, 1, 5, 5, 7, 10**400]], "polygon"),
        ([[1, 1, 5, 5, 7, -61]], "polygon far outside"),
        ([[v for k in range(200_000) for v in (k % 2 * 30, 0)]], "outline"),
        ([[0, 1] * 15] * 20, "table of 0 and 1"),
        ([[False, True] * 15] * 20, "table of 0 and 1"),
        ([[0, 1] * 20] * 3, "table of 0 and 1"),
        ({"size": [30, 20], "counts": [600]}, "size of the RLE"),
        ({"size": "20x30", "counts": [600]}, "size of the RLE"),
        ({"size": [20, 30, 3], "counts": [600]}, "size of the RLE"),
        ({"size": [20, 30], "counts": [600.5]}, "counts of the RLE"),
        ({"size": [20, 30], "counts": ["600"]}, "counts of the RLE"),
        ({"size": [20, 30], "counts": [10**400]}, "counts of the RLE"),
        ({"size": [20, 30], "counts": {"a": 1}}, "counts of the RLE"),
        ({"size": [20, 30], "counts": [605, -5]}, "runs of the RLE"),
        ({"size": [20, 30], "counts": [2**52, 2**52]}, "runs of the RLE"),
        ({"size": [20, 30], "counts": []}, "runs of the RLE"),
        ({"size": [20, 30], "counts": "\ud83d"}, "runs of the RLE"),
    ],
)
def test_segmentations_unsafe_for_pycocotools_are_refused(segmentation, reason):
    with pytest.raises(RecordError) as error:
        rle_from_coco(segmentation, (20, 30))
    assert error.value.reason == reason


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (1 << 15, 1 << 15)])
def test_invalid_image_sizes_are_refused(size):
    with pytest.raises(RecordError, match="not a valid image size"):
        rle_from_coco([SQUARE], size)


def test_union_of_masks():
    masks = np.zeros((2, 6, 7), bool)
    masks[0, :3] = masks[1, 2:4] = True
    assert union_area(encode_masks(masks)) == 28 and union_area([]) == 0


def test_pycocotools_is_imported_in_one_module():
    root = Path(__file__).parents[2]
    files = [path for folder in ("sohes_d2", "tools", "datasets") for path in (root / folder).rglob("*.py")]
    pattern = re.compile(r"^\s*(from|import) pycocotools", re.MULTILINE)
    assert [path.name for path in files if pattern.search(path.read_text())] == ["masks.py"]

"""Compressed RLEs are decoded as by pycocotools, and invalid ones are detected."""

import numpy as np
import pytest

from sohes_d2.errors import RecordError
from sohes_d2.structures.masks import decode_mask, encode_masks, mask_areas, rle_from_coco
from sohes_d2.structures.run_lengths import batch_run_lengths, check_runs, merge_empty_runs, run_lengths


def runs_of(mask):
    flat = mask.T.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size])
    return [0, *runs] if flat[0] else list(runs)


def test_run_lengths_are_those_of_the_mask():
    rng = np.random.default_rng(0)
    masks = [rng.random((13, 17)) < p for p in (0.02, 0.3, 0.5, 0.95)]
    big = np.zeros((900, 1200), bool)
    big[100:101, 5:1100] = True
    for mask in [*masks, big, np.zeros((4, 5), bool), np.ones((4, 5), bool)]:
        (rle,) = encode_masks([mask])
        assert run_lengths(rle["counts"]).tolist() == runs_of(mask)
        assert run_lengths(rle["counts"].decode()).tolist() == runs_of(mask)
        check_runs(run_lengths(rle["counts"]), mask.shape)


def test_a_damaged_mask_does_not_affect_others():
    rng = np.random.default_rng(1)
    masks = [rng.random((13, 17)) < p for p in (0.02, 0.5, 0.9)]
    a, b, c = (rle["counts"] for rle in encode_masks(masks))
    batch = [a, a + b"o", "", b"\x00" + b, b.decode(), b"oooooooooo1", c]
    runs = batch_run_lengths(batch)
    for k, mask in ((0, masks[0]), (4, masks[1]), (6, masks[2])):
        assert runs[k].tolist() == runs_of(mask)
    assert len(runs[2]) == 0
    for k, reason in ((1, "middle of a value"), (3, "character"), (5, "longer than any image")):
        assert isinstance(runs[k], RecordError)
        assert reason in str(runs[k])
    assert batch_run_lengths([]) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c[:-2], "add up"),
        (lambda c: c + b"1", "add up"),
        (lambda c: b"", "add up to 0"),
        (lambda c: b"\x00" + c, "character"),
        (lambda c: c + "é".encode(), "character"),
        (lambda c: c + b"o", "middle of a value"),
        (lambda c: b"oooooooooo1", "longer than any image"),
        (lambda c: b"20N", "negative"),
    ],
)
def test_invalid_counts_are_refused(change, reason):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    (rle,) = encode_masks([mask])
    with pytest.raises(RecordError, match=reason):
        rle_from_coco({"size": rle["size"], "counts": change(rle["counts"])}, mask.shape)


def test_no_run_is_negative():
    check_runs(np.array([0, 5, 7]), (3, 4))
    with pytest.raises(ValueError, match="negative"):
        check_runs(np.array([-1, 5, 8]), (3, 4))


def test_runs_of_length_0_are_merged():
    """pycocotools writes past its buffers when it merges masks with many of them."""
    runs = np.array([0, 0, 3, 0, 0, 2, 0, 4, 0, 0, 3, 0])
    assert merge_empty_runs(runs).tolist() == [3, 6, 3]
    assert merge_empty_runs(np.array([0, 5, 0, 7])).tolist() == [0, 12]
    assert merge_empty_runs(np.array([12, 0])).tolist() == [12]
    assert merge_empty_runs(np.array([0, 0, 12])).tolist() == [12]
    rle = rle_from_coco({"size": [3, 4], "counts": runs.tolist()}, (3, 4))
    assert decode_mask(rle).T.ravel().nonzero()[0].tolist() == [3, 4, 5, 6, 7, 8]
    assert run_lengths(rle["counts"]).tolist() == [3, 6, 3]


def test_more_runs_than_pixels_are_refused():
    with pytest.raises(RecordError, match="14 runs"):
        rle_from_coco({"size": [3, 4], "counts": [0] * 13 + [12]}, (3, 4))
    with pytest.raises(RecordError, match="20001 runs"):
        rle_from_coco({"size": [3, 4], "counts": "0" * 20000 + "<"}, (3, 4))
    assert mask_areas([rle_from_coco({"size": [3, 4], "counts": [0] + [1] * 12}, (3, 4))]) == [6]

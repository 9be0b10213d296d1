"""Compressed RLEs are decoded as pycocotools decodes them, and unsound ones are told."""

import numpy as np
import pytest

from sohes_d2.structures.rle_check import check_rle, run_lengths
from sohes_d2.structures.masks import encode_masks


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
        check_rle(rle)


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
def test_unsound_counts_are_refused(change, reason):
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    (rle,) = encode_masks([mask])
    with pytest.raises(ValueError, match=reason):
        check_rle({"size": rle["size"], "counts": change(rle["counts"])})

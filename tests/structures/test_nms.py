"""Mask overlaps on the device equal those of the RLEs."""

from __future__ import annotations

import numpy as np
import torch

from sohes_d2.structures import nms
from sohes_d2.structures.masks import encode_masks, iou_matrix
from sohes_d2.structures.nms import intersections, ious, without_duplicates

SIZE = (20, 30)


def test_intersections_and_ious_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.random((9, *SIZE)) < 0.5, rng.random((4, *SIZE)) < 0.3
    a[0] = b[0] = True
    b[0, 0, 0] = False
    expected = (a[:, None] & b[None]).sum((2, 3))
    # bfloat16 cannot count to 599
    assert expected[0, 0] == 599
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = intersections(torch.from_numpy(a), torch.from_numpy(b))
    monkeypatch.setattr(nms, "CPU_CHUNK_BYTES", 4 * 13 * 7)
    chunked = intersections(torch.from_numpy(a), torch.from_numpy(b))
    assert np.array_equal(whole.numpy(), expected) and np.array_equal(chunked.numpy(), expected)
    found = ious(whole, torch.from_numpy(a.sum((1, 2))), torch.from_numpy(b.sum((1, 2))))
    np.testing.assert_allclose(found.numpy(), iou_matrix(encode_masks(a), encode_masks(b)), atol=1e-6)


def test_no_masks():
    none = torch.zeros(0, *SIZE, dtype=torch.bool)
    assert intersections(none, none).shape == (0, 0)
    assert intersections(none, torch.ones(2, *SIZE, dtype=torch.bool)).shape == (0, 2)


def test_masks_with_iou_equal_to_the_threshold_are_kept():
    masks = np.zeros((2, *SIZE), bool)
    masks[0, 4, 5:8] = masks[1, 4, 6:9] = True  # 2 of 4 pixels are shared
    encoded, scores = encode_masks(masks), np.array([0.5, 0.9])
    assert without_duplicates(encoded, scores, 0.5).tolist() == [1, 0]
    assert without_duplicates(encoded, scores, 0.49).tolist() == [1]

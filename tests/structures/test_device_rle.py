"""Run lengths found by torch are the RLEs of pycocotools."""

import numpy as np
import pytest
import torch

from sohes_d2.structures.device_rle import encode_on_device
from sohes_d2.structures.masks import encode_masks


@pytest.mark.parametrize("chunk_bytes", [1, 500, 10**9])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_same_as_pycocotools(chunk_bytes, dtype):
    rng = np.random.default_rng(0)
    masks = np.stack([rng.random((11, 15)) < p for p in (0, 0.1, 0.5, 0.9, 1)])
    masks[1, 0, 0] = True  # starts inside
    masks[2, -1, -1] = True  # ends inside
    assert encode_on_device(torch.from_numpy(masks).to(dtype), chunk_bytes) == encode_masks(masks)


def test_one_row_one_column_and_none():
    for shape in ((1, 7), (7, 1), (1, 1)):
        masks = np.random.default_rng(1).random((4, *shape)) < 0.5
        assert encode_on_device(torch.from_numpy(masks)) == encode_masks(masks)
    assert encode_on_device(torch.zeros(0, 5, 6)) == []


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        encode_on_device(torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"at least 1"):
        encode_on_device(torch.zeros(2, 0, 6))

"""Mask overlaps as tensor operations."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the float copies of the pixels that are made at once. What a CPU's cache holds is multiplied faster there.
CPU_CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 128 * 1024 * 1024


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) float32 numbers of pixels that masks (N, H, W) and (M, H, W), bool, share; exact up to 2^24 pixels."""
    same = a is b
    # bytes become floats ten times as fast as bools, on CPUs
    a, b = (masks.view(torch.uint8).flatten(1) for masks in (a, b))
    common = torch.zeros(len(a), len(b), device=a.device)
    if not common.numel():
        return common
    chunk_bytes = CPU_CHUNK_BYTES if a.device.type == "cpu" else CHUNK_BYTES
    pixels = max(1, chunk_bytes // (4 * (len(a) + len(b))))
    # half precision could not count to more than 65504
    with torch.autocast(a.device.type, enabled=False):
        for some_of_a, some_of_b in zip(a.split(pixels, dim=1), b.split(pixels, dim=1)):
            left = some_of_a.float()
            common += left @ (left if same else some_of_b.float()).T
    return common


def ious(common: Tensor, areas_of_a: Tensor, areas_of_b: Tensor) -> Tensor:
    """(N, M) intersections over unions of masks with ``common`` (N, M) pixels and areas (N,) and (M,) in pixels."""
    unions = areas_of_a[:, None] + areas_of_b[None] - common
    return common / unions.clamp(min=1)


def first_of_each(repeats: Tensor) -> Tensor:
    """(N,) bool: greedily from the first on, what repeats nothing that is kept (Cluster-NMS, Zheng et al., 2020).

    Args:
        repeats: (N, N) bool, symmetric: which are the same.
    """
    repeats = repeats.tril(-1)
    kept = torch.ones(len(repeats), dtype=torch.bool, device=repeats.device)
    # each round settles at least one more; few are needed
    while True:
        after = ~(repeats & kept).any(1)
        if torch.equal(after, kept):
            return kept
        kept = after

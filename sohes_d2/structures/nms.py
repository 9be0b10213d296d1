"""Non-maximum suppression (NMS) of masks, for RLEs on the CPU and for tensors on any device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .masks import RLE, iou_matrix, mask_areas, mask_boxes

# Size of the float copies of masks per step of `intersections`; on CPUs, chunks that fit into the cache are faster.
CPU_CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 128 * 1024 * 1024


def without_duplicates(masks: Sequence[RLE], scores: np.ndarray, nms_threshold: float) -> np.ndarray:
    """NMS of masks: indices of the kept masks by descending score, without pairs of IoU above ``nms_threshold``.

    Args:
        masks: N RLEs of one size.
        scores: (N,), the better of two duplicates is kept; of equal scores, the first.
        nms_threshold: in [0, 1].
    """
    order = np.argsort(-scores, kind="stable")
    masks = [masks[k] for k in order]
    areas, boxes = mask_areas(masks), mask_boxes(masks)
    ends = boxes[:, :2] + boxes[:, 2:]
    alive = np.ones(len(order), dtype=bool)
    for k in range(len(order)):
        if not alive[k]:
            continue
        # IoUs are computed only for masks of similar area and position; others cannot reach the threshold.
        shared = np.minimum(ends[k], ends) - np.maximum(boxes[k, :2], boxes[:, :2])
        near = alive & (np.minimum(areas[k], areas) > nms_threshold * np.maximum(areas[k], areas))
        near &= np.prod(np.maximum(shared, 0), axis=1) > nms_threshold * areas[k]
        near[: k + 1] = False
        candidates = np.flatnonzero(near)
        overlaps = iou_matrix([masks[k]], [masks[j] for j in candidates])[0]
        alive[candidates[overlaps > nms_threshold]] = False
    return order[alive]


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """(N, M) float32 intersections in pixels of masks (N, H, W) and (M, H, W), bool; exact up to 2^24 pixels."""
    same = a is b
    # on CPUs, uint8 converts to float ten times as fast as bool
    a, b = (masks.view(torch.uint8).flatten(1) for masks in (a, b))
    common = torch.zeros(len(a), len(b), device=a.device)
    if not common.numel():
        return common
    chunk_bytes = CPU_CHUNK_BYTES if a.device.type == "cpu" else CHUNK_BYTES
    pixels = max(1, chunk_bytes // (4 * (len(a) + len(b))))
    # half precision cannot represent counts above 65504
    with torch.autocast(a.device.type, enabled=False):
        for some_of_a, some_of_b in zip(a.split(pixels, dim=1), b.split(pixels, dim=1)):
            left = some_of_a.float()
            common += left @ (left if same else some_of_b.float()).T
    return common


def ious(common: Tensor, areas_of_a: Tensor, areas_of_b: Tensor) -> Tensor:
    """(N, M) IoUs of masks with intersections ``common`` (N, M) and areas (N,) and (M,), in pixels."""
    unions = areas_of_a[:, None] + areas_of_b[None] - common
    return common / unions.clamp(min=1)


def first_of_each(repeats: Tensor) -> Tensor:
    """Greedy NMS in the given order (Cluster-NMS, Zheng et al., 2020): (N,) bool, items that duplicate no kept one.

    Args:
        repeats: (N, N) bool, symmetric: which pairs are duplicates.
    """
    repeats = repeats.tril(-1)
    kept = torch.ones(len(repeats), dtype=torch.bool, device=repeats.device)
    # each iteration fixes at least one more item; few are needed in practice
    while True:
        after = ~(repeats & kept).any(1)
        if torch.equal(after, kept):
            return kept
        kept = after

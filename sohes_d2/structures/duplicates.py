"""Non-maximum suppression (NMS) of masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .masks import RLE, iou_matrix, mask_areas, mask_boxes


def without_duplicates(masks: Sequence[RLE], scores: np.ndarray, nms_threshold: float) -> np.ndarray:
    """Indices of the best masks, by falling score, no two of which overlap by more than an IoU.

    Args:
        masks: N RLEs of one size.
        scores: (N,), the better of two duplicates stays; of equals, the first.
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
        # Only masks of about the same area and place can overlap that much; of the others no overlap is computed.
        shared = np.minimum(ends[k], ends) - np.maximum(boxes[k, :2], boxes[:, :2])
        near = alive & (np.minimum(areas[k], areas) > nms_threshold * np.maximum(areas[k], areas))
        near &= np.prod(np.maximum(shared, 0), axis=1) > nms_threshold * areas[k]
        near[: k + 1] = False
        candidates = np.flatnonzero(near)
        overlaps = iou_matrix([masks[k]], [masks[j] for j in candidates])[0]
        alive[candidates[overlaps > nms_threshold]] = False
    return order[alive]

"""Stability: which masks of a photo come back when it is mirrored, recoloured and reduced. A measure without labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from ..structures.masks import decode_mask, encode_masks, iou_matrix

Find = Callable[[np.ndarray], Any]  # from an (H, W, 3) photo to its Forest

RETURNED_IOU = 0.75  # with the best mask of the changed photo
SHRINK = 0.75  # of the photo's sides
JITTER = 0.2  # brightness, contrast and saturation change by up to this share


def stability(find: Find, image: np.ndarray, generator: np.random.Generator, best: int) -> float:
    """Share of the ``best`` masks of an (H, W, 3) photo, by score, that come back; 0 without any mask."""
    scores, returned = look_twice(find, image, generator)
    chosen = np.argsort(-scores, kind="stable")[:best]
    return float(returned[chosen].mean()) if len(chosen) else 0.0


def look_twice(find: Find, image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(M,) scores of an (H, W, 3) photo's masks, and (M,) bool whether they come back."""
    height, width = image.shape[:2]
    first = find(image)
    second = find(transformed(image, generator))
    size = (width, height)
    back = [
        cv2.resize(decode_mask(mask).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[:, ::-1].astype(bool)
        for mask in second.masks
    ]
    if not len(first) or not back:
        return first.scores, np.zeros(len(first), bool)
    return first.scores, iou_matrix(first.masks, encode_masks(back)).max(axis=1) >= RETURNED_IOU


def transformed(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The photo mirrored, recoloured and reduced."""
    size = (max(1, round(image.shape[1] * SHRINK)), max(1, round(image.shape[0] * SHRINK)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:, ::-1].astype(np.float32)
    brightness, contrast, saturation = generator.uniform(1 - JITTER, 1 + JITTER, 3).astype(np.float32)
    grey = small.mean(axis=2, keepdims=True)
    colored = grey + saturation * (small - grey)
    mean = colored.mean()
    return np.clip(np.rint(brightness * (mean + contrast * (colored - mean))), 0, 255).astype(np.uint8)

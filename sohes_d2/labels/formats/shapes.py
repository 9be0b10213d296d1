"""Masks as pixels in their boxes, and as polygons for tools that fill them like OpenCV and Pillow.

Outlines run through pixel centres.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from ...structures.masks import RLE, check_extent, encode_window, mask_boxes
from ...structures.run_lengths import run_lengths


def crops(masks: Sequence[RLE]) -> Iterator[tuple[list[int], np.ndarray]]:
    """For each mask its box (x, y, w, h), and (h, w) bool, the mask inside it."""
    for mask, box in zip(masks, mask_boxes(masks).astype(int).tolist()):
        yield box, cropped(mask, box)


def cropped(mask: RLE, box: Sequence[int]) -> np.ndarray:
    """(h, w) bool, the mask inside a box; pixels are decoded only for the columns of the box.

    Args:
        mask: compressed RLE.
        box: (x, y, w, h) in pixels, inside the image.
    """
    height = mask["size"][0]
    left, top, w, h = box
    ends = np.clip(run_lengths(mask["counts"]).cumsum() - left * height, 0, w * height)
    columns = np.repeat(np.arange(len(ends)) % 2 == 1, np.diff(ends, prepend=0))
    columns = np.pad(columns, (0, w * height - len(columns))) if len(columns) < w * height else columns
    return columns.reshape(w, height).T[top : top + h]


def rings_of(mask: RLE, tolerance: float) -> list[np.ndarray]:
    """One ring per connected component, with holes joined to it by seams of zero width.

    Filling the rings by the even-odd rule, including the outline, reproduces the mask up to the tolerance.

    Args:
        mask: compressed RLE.
        tolerance: allowed deviation from the outline in pixels (Douglas-Peucker); 0: exact.

    Returns:
        (K, 2) int32 arrays of (x, y), K at least 3, the largest component first.
    """
    [(box, inside)] = crops([mask])
    pixels = np.ascontiguousarray(inside).view(np.uint8)
    contours, links = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=box[:2])
    rings = []
    for k, contour in enumerate(contours):
        if links[0][k][3] != -1:  # a hole
            continue
        ring = _simplified(contour, tolerance)
        hole = links[0][k][2]
        while hole != -1:
            ring = _spliced(ring, _simplified(contours[hole], tolerance))
            hole = links[0][hole][0]
        rings.append((cv2.contourArea(contour), ring))
    rings.sort(key=lambda pair: -pair[0])
    return [np.concatenate([ring, ring[-1:], ring[-1:]])[: max(3, len(ring))] for _, ring in rings]


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Join the rings of several components by seams, which tools that include the outline draw as thin lines."""
    ring = rings[0]
    for other in rings[1:]:
        ring = _spliced(ring, other)
    return ring


def fill(rings: Sequence[np.ndarray], size: tuple[int, int]) -> RLE:
    """The union of rings, each filled by the even-odd rule.

    Args:
        rings: (K, 2) arrays of (x, y), rounded to whole pixels.
        size: (H, W).

    Raises:
        RecordError: see `check_extent`.
    """
    values = [np.asarray(ring, np.float64) for ring in rings if len(ring)]
    check_extent([ring.reshape(-1) for ring in values], size)
    rings = [np.rint(ring).astype(np.int32) for ring in values]
    points = np.concatenate([np.zeros((0, 2), np.int32), *rings])
    limits = np.array(size)[::-1]
    first = np.clip(points.min(0, initial=10**6), 0, limits)
    last = np.clip(points.max(0, initial=-(10**6)) + 1, 0, limits)
    if (first >= last).any():
        return encode_window(np.zeros((0, 0), bool), (0, 0), size)
    window = np.zeros((last - first)[::-1], np.uint8)
    for ring in rings:
        cv2.fillPoly(window, [(ring - first).reshape(-1, 1, 2)], 1)
    return encode_window(window.view(bool), (int(first[1]), int(first[0])), size)


def fill_box(left: float, top: float, right: float, bottom: float, size: tuple[int, int]) -> RLE:
    """A rectangle between the coordinates of pixels that it includes, see `fill`."""
    return fill([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], size)


def _simplified(contour: np.ndarray, tolerance: float) -> np.ndarray:
    simple = cv2.approxPolyDP(contour, tolerance, True) if tolerance > 0 else contour
    return (simple if len(simple) >= 3 else contour).reshape(-1, 2)


def _spliced(ring: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Insert ``other`` into ``ring`` at the nearest pair of points, there and back."""
    distances = ((ring[:, None].astype(np.int64) - other[None]) ** 2).sum(2)
    i, j = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([ring[: i + 1], other[j:], other[: j + 1], ring[i:]])

"""Binary masks as run lengths (RLE): encoding in bounded memory, and exact overlap matrices without decoding.

An RLE here is what pycocotools calls one: ``{"size": [H, W], "counts": bytes}``. Json files hold ``counts`` as ``str``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

RLE = dict[str, Any]

# pycocotools wants the masks of one call as one Fortran-ordered copy: this bounds that copy, whatever the number of
# masks.
CHUNK_BYTES = 64 * 1024 * 1024


def encode_masks(masks: Any, chunk_bytes: int = CHUNK_BYTES) -> list[RLE]:
    """Encode masks to compressed RLEs, a chunk at a time.

    Args:
        masks: (N, H, W) array or tensor (any device), or an iterable of (H, W) arrays; non-zero is inside. A generator
        is
            read lazily, so that N full masks never have to exist at once.
        chunk_bytes: upper bound, in bytes, of the working copy (at least one mask is taken).

    Returns:
        N RLEs.

    Raises:
        ValueError: a mask is not two-dimensional.
    """
    rles: list[RLE] = []
    iterator = iter(masks)
    for first in iterator:
        first = _to_uint8(first)
        per_chunk = max(1, chunk_bytes // max(1, first.size))
        rest = [_to_uint8(mask) for mask in islice(iterator, per_chunk - 1)]
        chunk = np.empty((*first.shape, 1 + len(rest)), dtype=np.uint8, order="F")
        for k, mask in enumerate([first, *rest]):
            chunk[..., k] = mask
        rles.extend(mask_util.encode(chunk))
    return rles


def _to_uint8(mask: Any) -> np.ndarray:
    if hasattr(mask, "detach"):  # a torch tensor, on any device; torch itself is not needed here
        mask = mask.detach().cpu().numpy()
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(
            f"a mask must be (H, W), got shape {mask.shape}; pass (N, H, W) or an iterable of (H, W) masks"
        )
    return (mask != 0).view(np.uint8)


def encode_label_map(labels: np.ndarray, values: Sequence[int]) -> list[RLE]:
    """Encode the regions ``labels == value``, one RLE per value. ``labels`` is (H, W) of integers."""
    return encode_masks(labels == value for value in values)


def decode_mask(rle: RLE) -> np.ndarray:
    """(H, W) bool mask of one RLE."""
    return mask_util.decode(rle).view(bool)


def decode_masks(rles: Sequence[RLE]) -> np.ndarray:
    """(N, H, W) bool masks. All must have one size; zero masks give (0, 0, 0)."""
    if not len(rles):
        return np.zeros((0, 0, 0), dtype=bool)
    return np.ascontiguousarray(mask_util.decode(list(rles)).transpose(2, 0, 1)).view(bool)


def mask_areas(rles: Sequence[RLE]) -> np.ndarray:
    """(N,) int64 areas in pixels."""
    # One call takes at most 255: pycocotools 2.0.11 keeps the number of masks in a uint8, which numpy 2 refuses to
    # overflow.
    chunks = [mask_util.area(list(rles[k : k + 255])) for k in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0, np.int64), *chunks]).astype(np.int64)


def mask_boxes(rles: Sequence[RLE]) -> np.ndarray:
    """(N, 4) float64 tight boxes as (x, y, width, height) in pixels; zeros for an empty mask."""
    return np.asarray(mask_util.toBbox(list(rles)), np.float64).reshape(-1, 4) if len(rles) else np.zeros((0, 4))


def coverage_matrix(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """(len(a), len(b)) float64: the share of each mask of ``a`` that lies inside each mask of ``b``, |a & b| / |a|.

    Exact, on the run lengths. An empty mask of ``a`` is covered by nothing (0).
    """
    return _overlaps(a, b, crowd=1)


def iou_matrix(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """(len(a), len(b)) float64 intersection over union; 0 where both masks are empty."""
    return _overlaps(a, b, crowd=0)


def _overlaps(a: Sequence[RLE], b: Sequence[RLE], crowd: int) -> np.ndarray:
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    # COCO defines the overlap with a "crowd" as intersection over the first mask's own area, which is coverage.
    overlaps = mask_util.iou(list(a), list(b), [crowd] * len(b))
    return np.nan_to_num(overlaps, nan=0.0, posinf=0.0)


def rle_to_json(rle: RLE) -> RLE:
    """The same RLE with ``counts`` as ``str``, ready for json."""
    counts = rle["counts"]
    return {"size": [int(v) for v in rle["size"]], "counts": counts.decode() if isinstance(counts, bytes) else counts}


def rle_from_coco(segmentation: Any, image_size: tuple[int, int]) -> RLE:
    """A compressed RLE from any COCO segmentation.

    Args:
        segmentation: polygons (list of flat x, y lists), uncompressed RLE (``counts`` a list) or compressed RLE.
        image_size: (H, W) of the image.

    Raises:
        ValueError: not a segmentation, or an RLE of another size than the image.
    """
    height, width = image_size
    if isinstance(segmentation, list):
        if not segmentation:
            raise ValueError("the segmentation is an empty list of polygons; drop the annotation or give it a mask")
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise ValueError(f"not a COCO segmentation (polygons or RLE): {str(segmentation)[:80]!r}")
    if tuple(segmentation["size"]) != (height, width):
        raise ValueError(
            f"the RLE has size {list(segmentation['size'])}, its image is {[height, width]} (height, width)"
        )
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    counts = segmentation["counts"]
    return {"size": [height, width], "counts": counts.encode() if isinstance(counts, str) else counts}


def encode_window(mask: np.ndarray, origin: tuple[int, int], image_size: tuple[int, int]) -> RLE:
    """Encode a mask that is known to be empty outside a window, at the cost of the window instead of the image.

    Args:
        mask: (h, w) bool, the window's part of the mask.
        origin: (y, x) of the window's first pixel.
        image_size: (H, W) of the image; the window must lie inside.

    Returns:
        The RLE of the (H, W) mask.
    """
    height, width = image_size
    (y, x), (window_height, window_width) = origin, mask.shape
    if y < 0 or x < 0 or y + window_height > height or x + window_width > width:
        raise ValueError(f"a window of {mask.shape} at {origin} leaves the image of {image_size}")
    padded = np.zeros((window_width, window_height + 2), np.int8)  # transposed: run lengths go down the columns
    padded[:, 1:-1] = mask.T
    edges = np.diff(padded, axis=1)
    column, row = np.nonzero(edges)
    position = (x + column).astype(np.int64) * height + y + row
    return encode_intervals(position[0::2], position[1::2], image_size)


def encode_intervals(starts: np.ndarray, ends: np.ndarray, image_size: tuple[int, int]) -> RLE:
    """Encode a mask given as intervals of its pixels, counted down the columns.

    Args:
        starts, ends: (R,) ascending positions in [0, H * W], each start before its end and no later than the next
            start; where an interval begins at the end of the one before, the two are one run.
        image_size: (H, W).
    """
    height, width = image_size
    if len(starts):
        apart = np.ones(len(starts) + 1, bool)
        apart[1:-1] = starts[1:] != ends[:-1]
        starts, ends = starts[apart[:-1]], ends[apart[1:]]
    positions = np.zeros(2 * len(starts) + 2, np.int64)
    positions[1:-1:2], positions[2:-1:2], positions[-1] = starts, ends, height * width
    counts = np.diff(positions)
    if counts[-1] == 0:  # the mask ends with the image
        counts = counts[:-1]
    return mask_util.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)

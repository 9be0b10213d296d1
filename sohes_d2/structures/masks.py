"""Binary masks as run lengths (RLE): encoding in bounded memory, and exact overlap matrices without decoding.

RLEs have the format of pycocotools: ``{"size": [H, W], "counts": bytes}``. Json files store ``counts`` as ``str``.

This is the only module that imports pycocotools, which reads and writes past its buffers if run lengths are invalid,
and rasterizes polygons with unbounded memory. Segmentations from files are checked by `rle_from_coco`; all other
functions expect RLEs made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from pycocotools import mask as mask_util

from ..errors import RecordError
from .run_lengths import batch_run_lengths, check_runs, merge_empty_runs

RLE = dict[str, Any]

# pycocotools needs the masks of one call as a Fortran-ordered copy; this bounds its size for any number of masks.
CHUNK_BYTES = 64 * 1024 * 1024

# Upper bound of image sizes: a size from a broken file must not use up all memory.
MAX_PIXELS = 1 << 29
# How far a polygon may extend from the origin, in units of the longer side of its image.
REACH = 2
# Largest outline of all polygons of a mask, in pixels; pycocotools needs about 100 bytes per pixel to rasterize it.
MAX_OUTLINE = 1 << 21
_POINTS = list[tuple[float, float]]


def encode_masks(masks: Any, chunk_bytes: int = CHUNK_BYTES) -> list[RLE]:
    """Encode masks to compressed RLEs, a chunk at a time.

    Args:
        masks: (N, H, W) array or tensor (any device), or an iterable of (H, W) arrays; non-zero is inside. A generator
            is read lazily, so that N full masks never exist at once.
        chunk_bytes: upper bound of the working copy in bytes (at least one mask is processed).

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
    """(N, H, W) bool masks. All must have the same size; no masks give (0, 0, 0)."""
    if not len(rles):
        return np.zeros((0, 0, 0), dtype=bool)
    return np.ascontiguousarray(mask_util.decode(list(rles)).transpose(2, 0, 1)).view(bool)


def mask_areas(rles: Sequence[RLE]) -> np.ndarray:
    """(N,) int64 areas in pixels."""
    # At most 255 per call: pycocotools 2.0.11 stores the number of masks in a uint8, and numpy 2 raises on overflow.
    chunks = [mask_util.area(list(rles[k : k + 255])) for k in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0, np.int64), *chunks]).astype(np.int64)


def mask_boxes(rles: Sequence[RLE]) -> np.ndarray:
    """(N, 4) float64 tight boxes as (x, y, width, height) in pixels; zeros for an empty mask."""
    return np.asarray(mask_util.toBbox(list(rles)), np.float64).reshape(-1, 4) if len(rles) else np.zeros((0, 4))


def coverage_matrix(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """(len(a), len(b)) float64 coverage: share of each mask of ``a`` inside each mask of ``b``, |a & b| / |a|.

    Exact, computed on run lengths. The coverage of an empty mask of ``a`` is 0.
    """
    return _overlaps(a, b, crowd=1)


def iou_matrix(a: Sequence[RLE], b: Sequence[RLE]) -> np.ndarray:
    """(len(a), len(b)) float64 intersection over union; 0 if both masks are empty."""
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
    """Validate any COCO segmentation of a json file and convert it to a compressed RLE.

    Args:
        segmentation: polygons in a common form: a list of flat lists x, y, x, y, ... or of lists of points [x, y], or
            one such polygon without the outer list; uncompressed RLE (``counts`` a list of whole numbers), or
            compressed RLE (``counts`` a string).
        image_size: (H, W) of the image in pixels.

    Raises:
        RecordError: not a segmentation, of another size than the image, or unsafe for pycocotools.
    """
    rle: Any = rles_from_coco([segmentation], image_size)[0]
    if isinstance(rle, RecordError):
        raise rle
    return rle


def rles_from_coco(
    segmentations: Sequence[Any], image_size: tuple[int, int], draw: bool = True
) -> list[RLE | RecordError | None]:
    """`rle_from_coco` for many masks of one image, faster; an invalid mask is replaced by its error.

    Args:
        segmentations: see `rle_from_coco`.
        image_size: (H, W) of the image in pixels.
        draw: rasterize polygons; otherwise masks are only checked, and a valid one is replaced by None.
    """
    results: list[RLE | RecordError | None] = []
    for segmentation, decoded in zip(segmentations, _decoded(segmentations)):
        try:
            polygons, runs = _check(segmentation, image_size, decoded)
            results.append(_rle(segmentation, polygons, runs, image_size) if draw else None)
        except RecordError as error:
            results.append(error)
    return results


def _decoded(segmentations: Sequence[Any]) -> list[np.ndarray | RecordError | None]:
    """Run lengths of compressed RLEs; None for other segmentations."""
    counts = [s.get("counts") if isinstance(s, dict) else None for s in segmentations]
    texts = {k: text for k, text in enumerate(counts) if isinstance(text, (str, bytes))}
    runs = dict(zip(texts, batch_run_lengths(list(texts.values()))))
    return [runs.get(k) for k in range(len(counts))]


def _rle(
    segmentation: Any, polygons: Sequence[np.ndarray], runs: np.ndarray | None, image_size: tuple[int, int]
) -> RLE:
    height, width = image_size
    if runs is None:
        return mask_util.merge(mask_util.frPyObjects([polygon.tolist() for polygon in polygons], height, width))
    counts = segmentation["counts"]
    if isinstance(counts, (str, bytes)) and (runs[1:] != 0).all():
        return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    return encode_runs(merge_empty_runs(runs), (height, width))


def _check(
    segmentation: Any, image_size: tuple[int, int], decoded: np.ndarray | RecordError | None
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Polygons as flat arrays x, y, ..., or the run lengths of an RLE (``decoded`` for a compressed one)."""
    height, width = _checked_size(image_size)
    if isinstance(segmentation, (list, tuple)):
        return _polygons(segmentation, (height, width)), None
    if not isinstance(segmentation, dict) or "counts" not in segmentation or "size" not in segmentation:
        raise RecordError(f"not a COCO segmentation (polygons or RLE): {str(segmentation)[:80]!r}", "no segmentation")
    size, expected = segmentation["size"], [height, width]
    sound = type(size) is list and size == expected  # the common case; the check of other forms is slower
    if not sound and _whole_numbers(size, "size of the RLE").tolist() != expected:
        text = str(list(size))[:40]
        raise RecordError(f"the RLE has size {text}, its image is {expected} (height, width)", "size of the RLE")
    if isinstance(decoded, RecordError):
        raise decoded
    runs = _whole_numbers(segmentation["counts"], "counts of the RLE") if decoded is None else decoded
    check_runs(runs, (height, width))
    return [], runs


def has_segmentation(annotation: Mapping[str, Any]) -> bool:
    """Whether an annotation has a mask; for a box without mask, tools omit it or write null or []."""
    return annotation.get("segmentation") not in (None, [], {}, "")


def _checked_size(image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = (int(v) for v in image_size)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RecordError(f"{height} x {width} is not a valid image size (height x width)", "size of the image")
    return height, width


def _numbers(values: Any, form: Any = list[float]) -> np.ndarray:
    """(K,) float64 of values that msgspec converts to ``form``; a single NaN for anything else."""
    try:
        return np.array(msgspec.convert(values, form), np.float64).reshape(-1)
    except msgspec.ValidationError:
        return np.array([np.nan])


def _whole_numbers(values: Any, what: str) -> np.ndarray:
    """(K,) int64; floats are accepted if they are whole numbers."""
    numbers = _numbers(values.tolist() if isinstance(values, np.ndarray) else values)
    if not ((np.abs(numbers) <= 2.0**53) & (numbers == np.floor(numbers))).all():
        raise RecordError(f"the {what} must be whole numbers, got {str(values)[:40]}", what)
    return numbers.astype(np.int64)


def _polygons(segmentation: Sequence[Any], size: tuple[int, int]) -> list[np.ndarray]:
    """Flat arrays x, y, x, y, ... of polygons near the image, with outlines of bounded length."""
    pieces = [piece.tolist() if isinstance(piece, np.ndarray) else piece for piece in segmentation]
    if not pieces:
        raise RecordError(
            "the segmentation is an empty list of polygons; drop the annotation or give it a mask", "no segmentation"
        )
    if _is_table(pieces, size):
        raise RecordError(
            "the segmentation is a table of 0 and 1, not a list of polygons; encode the mask as RLE", "table of 0 and 1"
        )
    if isinstance(pieces[0], (int, float)) or len(_numbers(pieces, _POINTS)) > 1:  # a single polygon
        pieces = [pieces]
    polygons = []
    for piece in pieces:
        points = _numbers(piece)
        points = _numbers(piece, _POINTS) if len(points) == 1 else points
        if len(points) < 6 or len(points) % 2:
            raise RecordError("a polygon must be a flat list of at least three x, y pairs", "polygon")
        polygons.append(points)
    check_extent(polygons, size)
    return polygons


def check_extent(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Verify that flat arrays x, y, x, y, ... lie near the image and have outlines of bounded length.

    Raises:
        RecordError: a coordinate far outside, infinite or NaN, or a too long outline.
    """
    outline = 0.0
    for points in polygons:
        if not (np.abs(points) <= REACH * max(size)).all():  # also not a number
            raise RecordError("a polygon lies far outside its image", "polygon far outside")
        edges = np.abs(np.diff(np.concatenate([points, points[:2]]).reshape(-1, 2), axis=0))
        outline += float(edges.max(axis=1).sum())
    if outline > MAX_OUTLINE:
        raise RecordError(f"the outline of the polygons is {outline:.0f} pixels long", "outline")


def _is_table(pieces: Sequence[Any], size: tuple[int, int]) -> bool:
    """Whether these are the rows of a 0/1 mask: of the image's size, or many of equal length."""
    table = np.array(pieces, object)
    has_form = table.shape == size or (table.ndim == 2 and min(table.shape) > 2)
    return has_form and all(isinstance(value, (int, float)) and value in (0, 1) for value in table.flat)


def encode_runs(runs: Sequence[int] | np.ndarray, image_size: tuple[int, int]) -> RLE:
    """The RLE of run lengths that tile the image column by column, alternating outside and inside."""
    height, width = image_size
    counts = runs.tolist() if isinstance(runs, np.ndarray) else list(runs)
    return mask_util.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def union_area(rles: Sequence[RLE]) -> int:
    """Number of pixels covered by at least one of several masks of an image."""
    return int(mask_util.area(mask_util.merge(list(rles)))) if len(rles) else 0


def reference_evaluation() -> tuple[Any, Any]:
    """`COCO` and `COCOeval` of pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    return COCO, COCOeval


def encode_window(mask: np.ndarray, origin: tuple[int, int], image_size: tuple[int, int]) -> RLE:
    """Encode a mask that is empty outside a window, without creating an array of the image's size.

    Args:
        mask: (h, w) bool, the mask inside the window.
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
    """Encode a mask given as intervals of pixel positions in column-major order.

    Args:
        starts, ends: (R,) ascending positions in [0, H * W], start < end <= next start; adjacent intervals are joined.
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
    return encode_runs(counts, image_size)

"""Forests as compact json: masks stay run-length encoded, and the page decodes only those of the shown image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..structures.forest import Forest
from ..structures.masks import RLE, encode_window, mask_areas
from ..visualization.colors import forest_colors
from ..visualization.primitives import scaled_shape
from .forests import ImageForest

# COCO's run lengths use the 64 characters from "0" to "o". Two of them need escapes in json inside html, so they are
# replaced; the page reverts this. A space, which is not one of the 64, separates the masks.
COUNTS_TO_PAGE = bytes.maketrans(b"<\\", b"pq")
SEPARATOR = " "


def embed_json(value: Any) -> str:
    """Json that is safe inside a ``<script>`` element: ASCII, and no "<" that could end it or open a comment.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def pack_masks(masks: Sequence[RLE], size: tuple[int, int]) -> str:
    """The run lengths of masks, scaled to (H, W) ``size``, as one string. Small masks keep at least one pixel."""
    packed = []
    for rle in masks:
        if tuple(rle["size"]) != size:
            shape = scaled_shape(rle, size)
            rle = encode_window(shape.mask, (shape.y, shape.x), size)
        packed.append(rle["counts"].translate(COUNTS_TO_PAGE).decode("ascii"))
    return SEPARATOR.join(packed)


def pack_forest(
    image: ImageForest, size: tuple[int, int], categories: dict[Any, str], counts: Sequence[int] = ()
) -> dict[str, Any]:
    """Data of one image of one file for the page.

    Args:
        image: its forest, from large to small masks.
        size: (H, W) of the picture in the page.
        categories: class names of masks; may be empty.
        counts: numbers of entities to select.

    Returns:
        ``ids``, ``parents`` (-1 = whole), ``scores``, ``areas`` (share of the image), ``colors`` (six hexadecimal
        digits per mask), ``labels`` and ``sources`` (strings, or None if no mask has one), ``counts``, ``problems``;
        ``selections``, for each of ``counts`` the indices that `Forest.select` keeps, ``collapsed``, those that
        `Forest.collapse` keeps, and ``maxChildArea`` of a part among these.
    """
    forest = image.forest
    pixels = forest.image_size[0] * forest.image_size[1]
    labels = [_text(categories.get(_key(a.get("category_id")))) for a in image.annotations]
    sources = [_text(a.get("source")) for a in image.annotations]
    return {
        "ids": [_text(a.get("id")) for a in image.annotations],
        "parents": forest.parents.tolist(),
        "scores": [round(float(score), 4) for score in forest.scores],
        "areas": [float(f"{area / pixels:.4g}") for area in mask_areas(forest.masks)],
        "colors": _hex_colors(forest),
        "labels": labels if any(labels) else None,
        "sources": sources if any(sources) else None,
        "counts": pack_masks(forest.masks, size),
        "problems": image.problems,
        "byCoverage": image.by_coverage,
        "selections": [forest.selected_indices(count).tolist() for count in counts],
        "collapsed": forest.collapsed_indices().tolist() if counts else [],
        "maxChildArea": forest.rules.max_child_area,
    }


def _hex_colors(forest: Forest) -> str:
    return forest_colors(forest).tobytes().hex()


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)

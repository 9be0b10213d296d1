"""Compact encoding of photos and forests for the page.

Photos are read only from their folder, resized and encoded. Masks stay run-length encoded, and the page decodes only
those of the shown image.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, features

from ..errors import ImageReadError, InputError
from ..structures.images import read_image
from ..structures.masks import RLE, encode_window
from ..visualization.colors import forest_colors
from ..visualization.primitives import resize, scaled_shape
from .label_file import ImageForest

# WebP needs half the bytes of JPEG; a build of Pillow without it is rare.
FORMAT = "WEBP" if features.check("webp") else "JPEG"
QUALITY = 82
THUMBNAIL_SIDE = 160  # pixels of the longer side; shown at half the size, for high-density screens
THUMBNAIL_QUALITY = 70
# Largest relative difference between the aspect ratios of a photo and its labels; the resolutions may differ.
ASPECT_TOLERANCE = 0.02
# COCO's run lengths use the 64 characters from "0" to "o". Two of them need escapes in json inside html, so they are
# replaced; the page reverts this. A space, which is not one of the 64, separates the masks.
COUNTS_TO_PAGE = bytes.maketrans(b"<\\", b"pq")
SEPARATOR = " "


def photo_path(folder: Path, file_name: Any) -> Path:
    """Path of an image file. Names from a json file cannot point outside the folder.

    Raises:
        InputError: the name is not a string, is absolute (on any system), or contains "..".
    """
    if not isinstance(file_name, str) or not file_name or "\0" in file_name:
        raise InputError(f"the file name {file_name!r} is not a name; give each image its path below --images")
    for path in (PurePosixPath(file_name), PureWindowsPath(file_name)):
        if path.drive or path.root or ".." in path.parts:
            raise InputError(
                f"the file name {file_name!r} points outside the images folder and was not opened; use names relative "
                "to --images, without '..'"
            )
    return folder / file_name


def read_photo(folder: Path, file_name: Any, size: tuple[int, int]) -> np.ndarray:
    """Read the image of labels of (H, W) ``size`` as (H, W, 3) uint8 RGB. Its resolution may differ.

    Raises:
        InputError: the file is outside the folder, missing or damaged, or has another aspect ratio.
    """
    try:
        photo = read_image(photo_path(folder, file_name))
    except ImageReadError as error:
        raise InputError(f"{error.reason}: {file_name!r}") from error
    height, width = photo.shape[:2]
    if abs(height * size[1] - width * size[0]) > ASPECT_TOLERANCE * max(height * size[1], width * size[0]):
        raise InputError(
            f"the photo is {height} x {width} (height x width), its labels are for {size[0]} x {size[1]}; pass the "
            "photos that were labeled"
        )
    return photo


def shown_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(H, W) of a picture whose longer side is at most ``max_side``, never enlarged."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def pack_photo(photo: np.ndarray, size: tuple[int, int]) -> tuple[str, str]:
    """A photo at (H, W) ``size`` and its thumbnail as ``data:`` URLs, without metadata."""
    full = resize(photo, size)
    thumbnail = resize(full, shown_size(size, THUMBNAIL_SIDE))
    return _data_url(full, QUALITY), _data_url(thumbnail, THUMBNAIL_QUALITY)


def _data_url(image: np.ndarray, quality: int) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, FORMAT, quality=quality, method=2)  # method: WebP's speed, 0 (fastest) to 6
    return f"data:image/{FORMAT.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


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
    image: ImageForest, size: tuple[int, int], categories: Mapping[Any, str], counts: Sequence[int]
) -> dict[str, Any]:
    """Data of one image of one file for the page.

    Args:
        image: its forest, from large to small masks.
        size: (H, W) of the picture in the page.
        categories: class names of masks; may be empty.
        counts: numbers of entities to select.

    Returns:
        ``ids``, ``parents`` (-1 = whole), ``scores``, ``areas`` (share of the image), ``colors`` (six hexadecimal
        digits per mask), ``labels`` and ``sources`` (strings, or None if no mask has one), ``counts`` (run lengths, see
        `pack_masks`), ``problems``, ``byCoverage`` (see `ImageForest`); ``selections``, for each of the numbers
        ``counts`` the indices that `Forest.select` keeps; ``collapsed``, those that `Forest.collapse` keeps, and
        ``maxChildArea`` of a part among these.
    """
    forest = image.forest
    pixels = forest.image_size[0] * forest.image_size[1]
    labels = [_text(categories.get(_key(a.get("category_id")))) for a in image.annotations]
    sources = [_text(a.get("source")) for a in image.annotations]
    return {
        "ids": [_text(a.get("id")) for a in image.annotations],
        "parents": forest.parents.tolist(),
        "scores": [round(float(score), 4) for score in forest.scores],
        "areas": [float(f"{area / pixels:.4g}") for area in forest.areas],
        "colors": forest_colors(forest).tobytes().hex(),
        "labels": labels if any(labels) else None,
        "sources": sources if any(sources) else None,
        "counts": pack_masks(forest.masks, size),
        "problems": image.problems,
        "byCoverage": image.by_coverage,
        "selections": [forest.selected_indices(count).tolist() for count in counts],
        "collapsed": forest.collapsed_indices().tolist(),
        "maxChildArea": forest.rules.max_child_area,
    }


def _key(value: Any) -> Any:
    return value if isinstance(value, (int, str)) else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)

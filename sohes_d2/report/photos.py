"""Photos of a report: read only from their folder, resized and encoded."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, features

from ..errors import ImageReadError, InputError
from ..structures.images import read_image
from ..visualization.primitives import resize

# WebP needs half the bytes of JPEG; a build of Pillow without it is rare.
FORMAT = "WEBP" if features.check("webp") else "JPEG"
QUALITY = 82
THUMBNAIL_SIDE = 160  # pixels of the longer side; shown at half the size, for high-density screens
THUMBNAIL_QUALITY = 70
# Largest relative difference between the aspect ratios of a photo and its labels; the resolutions may differ.
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class PackedPhoto:
    """A photo as ``data:`` URLs: at the page's size, and as a thumbnail."""

    full: str
    thumbnail: str


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


def read_photo(folder: Path, file_name: Any) -> np.ndarray:
    """Read an image inside the folder as (H, W, 3) uint8 RGB.

    Raises:
        InputError: the file is outside the folder, missing or damaged.
    """
    try:
        return read_image(photo_path(folder, file_name))
    except ImageReadError as error:
        raise InputError(f"{error.reason}: {file_name!r}") from error


def check_shape(photo: np.ndarray, size: tuple[int, int]) -> None:
    """Check that a photo has the aspect ratio of its labels' (H, W) ``size``; its resolution may differ.

    Raises:
        InputError: another aspect ratio.
    """
    height, width = photo.shape[:2]
    if abs(height * size[1] - width * size[0]) > ASPECT_TOLERANCE * max(height * size[1], width * size[0]):
        raise InputError(
            f"the photo is {height} x {width} (height x width), its labels are for {size[0]} x {size[1]}; pass the "
            "photos that were labeled"
        )


def shown_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(H, W) of a picture whose longer side is at most ``max_side``, never enlarged."""
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def pack_photo(photo: np.ndarray, size: tuple[int, int]) -> PackedPhoto:
    """Encode a photo at (H, W) ``size`` and its thumbnail, without metadata."""
    full = resize(photo, size)
    thumbnail = resize(full, shown_size(size, THUMBNAIL_SIDE))
    return PackedPhoto(_data_address(full, QUALITY), _data_address(thumbnail, THUMBNAIL_QUALITY))


def _data_address(image: np.ndarray, quality: int) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, FORMAT, quality=quality, method=2)  # method: WebP's speed, 0 (fastest) to 6
    return f"data:image/{FORMAT.lower()};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

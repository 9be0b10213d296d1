"""Detection of photos that changed since they were labeled: by size, mtime and, if only the mtime differs, CRC32."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from ..data.sources import ImageItem
from ..labels.index import PHOTO_DTYPE
from ..structures.files import open_regular
from ..structures.images import file_fingerprint

_THREADS = 8  # network drives handle several requests at once
_CHUNK = 1 << 20


class PhotoState(NamedTuple):
    """State of a photo when it was labeled.

    Attributes:
        size: in bytes; -1 if the file did not exist.
        mtime_ns: time of the last modification.
        crc32: checksum of its bytes; -1 if unknown.
    """

    size: int
    mtime_ns: int
    crc32: int = -1


GONE = PhotoState(-1, -1)


def photo_states(items: Sequence[ImageItem]) -> dict[int, PhotoState]:
    """Current state by image id, without checksums, so that no file is read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((item.image_id for item in items), pool.map(_state, (item.path for item in items))))


def with_checksum(path: str, before: PhotoState) -> PhotoState:
    """Add the checksum to the state taken before a photo was read, if the file has not changed since."""
    try:
        checksum = _crc32(path)
    except OSError:
        return before
    return before._replace(crc32=checksum) if _state(path) == before else before


def changed_photos(items: Iterable[ImageItem], known: Mapping[int, PhotoState]) -> list[ImageItem]:
    """Photos whose bytes changed. Photos that no longer exist or have no known state are ignored."""
    items = [item for item in items if item.image_id in known]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [item for item, changed in zip(items, pool.map(lambda i: _changed(i, known), items)) if changed]


def to_array(states: Mapping[int, tuple[int, ...]], image_ids: Iterable[int]) -> np.ndarray:
    """States as an array (images,) of PHOTO_DTYPE for an index; images of unknown state are omitted."""
    return np.array([(i, *states[i]) for i in image_ids if i in states], PHOTO_DTYPE)


def from_array(photos: np.ndarray | None) -> dict[int, PhotoState]:
    """State by image id; empty for None, the value of an index without states."""
    return {} if photos is None else {image_id: PhotoState(*state) for image_id, *state in photos.tolist()}


def _state(path: str) -> PhotoState:
    found = file_fingerprint(path)
    return GONE if found is None else PhotoState(*found)


def _changed(item: ImageItem, known: Mapping[int, PhotoState]) -> bool:
    before, now = known[item.image_id], _state(item.path)
    if now == GONE or now[:2] == before[:2]:
        return False
    try:
        return now.size != before.size or before.crc32 < 0 or _crc32(item.path) != before.crc32
    except OSError:
        return True


def _crc32(path: str) -> int:
    checksum = 0
    with open_regular(path) as file:
        while data := file.read(_CHUNK):
            checksum = zlib.crc32(data, checksum)
    return checksum

"""Detection of photos that changed since they were labeled: by size, time and, if only the time differs, CRC32."""

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

_THREADS = 8  # network drives answer many questions at once
_CHUNK = 1 << 20


class PhotoState(NamedTuple):
    """State of a photo when it was labeled.

    Attributes:
        size: in bytes; -1 where there was no such file.
        mtime_ns: time of the last change.
        crc32: of its bytes; -1 where it is not known.
    """

    size: int
    mtime_ns: int
    crc32: int = -1


GONE = PhotoState(-1, -1)


def photo_states(items: Sequence[ImageItem]) -> dict[int, PhotoState]:
    """Image id -> state now, without its checksum: no byte is read."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip((item.image_id for item in items), pool.map(_state, (item.path for item in items))))


def with_checksum(path: str, before: PhotoState) -> PhotoState:
    """The state before a photo was read, with the checksum of its bytes if they are still the same."""
    try:
        checksum = _crc32(path)
    except OSError:
        return before
    return before._replace(crc32=checksum) if _state(path) == before else before


def changed_photos(items: Iterable[ImageItem], known: Mapping[int, PhotoState]) -> list[ImageItem]:
    """Those with other bytes than they had. A photo that is not there any more, or not known, is none of them."""
    items = [item for item in items if item.image_id in known]
    with ThreadPoolExecutor(_THREADS) as pool:
        return [item for item, changed in zip(items, pool.map(lambda i: _changed(i, known), items)) if changed]


def to_array(states: Mapping[int, tuple[int, ...]], image_ids: Iterable[int]) -> np.ndarray:
    """(images,) of PHOTO_DTYPE, as an index keeps them; images of unknown state are left out."""
    return np.array([(i, *states[i]) for i in image_ids if i in states], PHOTO_DTYPE)


def from_array(photos: np.ndarray | None) -> dict[int, PhotoState]:
    """Image id -> state; empty for None, as an index without any has."""
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

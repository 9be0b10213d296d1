"""Index of a label file: position of each image and counts of its masks, computed once and stored beside the file."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CorruptFileError, InputError
from ..structures.files import atomic_writer
from .scanner import CHECKSUM, OUR_HEAD, iterate_records, readable
from .writer import SECTIONS, SEPARATOR, copy_range, read_range

# One row per image. Lengths exclude the separators; annotations of an image are one range, their records joined by
# ",\n". The checksum covers the image record and this range.
IMAGE_DTYPE = np.dtype(
    [
        ("image_id", "<i8"),
        ("image_offset", "<i8"),
        ("image_length", "<i4"),
        ("annotations_offset", "<i8"),
        ("annotations_length", "<i8"),
        ("count", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("crc32", "<u4"),
    ]
)

# State of each photo when it was labeled, including skipped ones: length and modification time of its file (-1: no
# file), and the CRC32 of its bytes (-1: unknown).
PHOTO_DTYPE = np.dtype([("image_id", "<i8"), ("bytes", "<i8"), ("mtime_ns", "<i8"), ("crc32", "<i8")])

# COCO's sizes, by mask area in pixels: small < 32^2 <= medium < 96^2 <= large.
COCO_SIZES = (("small", 32**2), ("medium", 96**2), ("large", math.inf))
# Sizes by share of the image area, independent of resolution.
RELATIVE_SIZES = (("<0.1%", 0.001), ("0.1-1%", 0.01), ("1-10%", 0.1), (">=10%", math.inf))

_CHECKSUM_LINE = re.compile(rb'\n"%s":(\d{1,10})\}\n\Z' % CHECKSUM.encode())
_CHECKED_BYTES = 4096  # at both ends of a label file, see `_checksum`

_SECOND_LINE = b'"categories":[{"id":1,"name":"entity"'


@dataclass
class ShardIndex:
    """The index of one label file.

    Attributes:
        rows: (images,) of IMAGE_DTYPE, in the order of the file.
        sections: (3, 2) int64, offset and length of the records of skipped, images, annotations, including separators.
        stats: "annotations", "skipped": counts; "depth", "size", "relative_size": histograms over masks, name -> count.
        file_bytes: length of the label file, to detect a stale index.
        photos: of PHOTO_DTYPE; None if the index was computed from the label file, which does not contain them.
    """

    rows: np.ndarray
    sections: np.ndarray
    stats: dict[str, Any]
    file_bytes: int
    photos: np.ndarray | None = None


def index_path(label_file: str) -> str:
    """Path of the index beside a label file."""
    return os.path.splitext(label_file)[0] + ".index.npz"


def load_index(label_file: str) -> ShardIndex:
    """Load the index beside a label file; if it is missing, stale or damaged, scan the file instead.

    It is stale if the length, the beginning or the end of the file has changed since the index was saved.

    Raises:
        CorruptFileError: the label file itself is damaged.
    """
    size = os.stat(label_file).st_size
    try:
        with np.load(index_path(label_file), allow_pickle=False) as arrays:
            index = ShardIndex(
                arrays["rows"],
                arrays["sections"],
                json.loads(arrays["stats"].tobytes()),
                int(arrays["file_bytes"]),
                arrays["photos"] if "photos" in arrays and arrays["photos"].dtype == PHOTO_DTYPE else None,
            )
            checksum = int(arrays["checksum"])
        is_whole = index.rows.dtype == IMAGE_DTYPE and index.sections.shape == (len(SECTIONS), 2)
        if is_whole and index.file_bytes == size and checksum == _checksum(label_file, size):
            return index
    except Exception:  # numpy and zipfile may raise anything on damaged bytes
        pass  # the index is only a cache: the file is scanned below
    return scan_label_file(label_file)


def save_index(label_file: str, index: ShardIndex) -> None:
    """Write the index beside its label file."""
    with atomic_writer(index_path(label_file)) as file:
        stats = np.frombuffer(json.dumps(index.stats).encode("ascii"), np.uint8)
        photos: dict[str, Any] = {} if index.photos is None else {"photos": index.photos}
        np.savez(
            file,
            rows=index.rows,
            sections=index.sections,
            stats=stats,
            file_bytes=np.int64(index.file_bytes),
            checksum=np.int64(_checksum(label_file, index.file_bytes)),
            **photos,
        )


def remove_index(label_file: str) -> None:
    """Delete the index beside a label file, if there is one."""
    Path(index_path(label_file)).unlink(missing_ok=True)


def _checksum(label_file: str, size: int) -> int:
    """Checksum of both ends of a label file: the whole file would take as long as a scan, and copies lose the mtime."""
    length = min(size, _CHECKED_BYTES)
    return zlib.crc32(read_range(label_file, size - length, length), zlib.crc32(read_range(label_file, 0, length)))


def join_indices(indices: Sequence[ShardIndex], sections: Sequence[tuple[int, int]], file_bytes: int) -> ShardIndex:
    """The index of a joined label file, without reading it.

    Args:
        indices: indices of the parts, at least one, in order; the parts have no image in common.
        sections: offsets and lengths in the joined file, as returned by `write_label_file`.
        file_bytes: length of the joined file.
    """
    starts = np.array(sections, np.int64)[:, 0]
    tables = []
    for index in indices:
        shift = dict(zip(SECTIONS, starts - index.sections[:, 0]))
        rows = index.rows.copy()
        rows["image_offset"] += shift["images"]
        rows["annotations_offset"][rows["count"] > 0] += shift["annotations"]
        tables.append(rows)
        lengths = index.sections[:, 1]
        starts = starts + np.where(lengths > 0, lengths + len(SEPARATOR), 0)
    stats: dict[str, Any] = {name: sum(index.stats[name] for index in indices) for name in ("annotations", "skipped")}
    for name in ("depth", "size", "relative_size"):
        total: Counter = Counter()
        for index in indices:
            total.update(index.stats[name])
        stats[name] = dict(total)
    photos = [index.photos for index in indices if index.photos is not None]
    known = np.concatenate(photos) if len(photos) == len(indices) else None
    return ShardIndex(np.concatenate(tables), np.array(sections, np.int64), stats, file_bytes, known)


def read_info(label_file: str) -> dict[str, Any]:
    """Read the `info` of a label file, on its first line.

    Raises:
        CorruptFileError: not a label file of this project.
    """
    with open(label_file, "rb") as file:
        line = file.readline()
    try:
        if not line.endswith(b",\n"):
            raise ValueError("no line break after `info`")
        return json.loads(line[:-2] + b"}")["info"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"{label_file!r} is not a label file of this project: {error}") from error


def is_label_file(path: str) -> bool:
    """Whether a file starts like a label file of this project; other COCO json files have another layout.

    Raises:
        InputError: the file cannot be read.
    """
    if not os.path.isfile(path):  # reading a pipe could block forever
        return False
    with readable(path), open(path, "rb") as file:
        if file.read(len(OUR_HEAD)) != OUR_HEAD:  # json on a single line may be long
            return False
        file.readline()
        return file.read(len(_SECOND_LINE)) == _SECOND_LINE


def check_label_file(label_file: str) -> None:
    """Verify the checksum at the end of a label file. Files of older versions have none and are scanned.

    Raises:
        CorruptFileError: the checksum differs, or the file is truncated or has another layout.
        OSError: the file cannot be read.
    """
    size = os.path.getsize(label_file)
    found = _CHECKSUM_LINE.search(read_range(label_file, max(0, size - 64), min(size, 64)))
    if found is None:
        scan_label_file(label_file)
        return
    checksum = 0
    for data in copy_range(label_file, 0, size - len(found.group()) + 1):  # the line break before is included
        checksum = zlib.crc32(data, checksum)
    if checksum != int(found.group(1)):
        raise CorruptFileError(
            f"{label_file!r} is damaged: its checksum is {checksum}, it was written with {found.group(1).decode()}; "
            "delete it and make it again with --resume"
        )


def scan_label_file(label_file: str) -> ShardIndex:
    """Compute the index of a label file by scanning it.

    Raises:
        CorruptFileError: the file is truncated, damaged or has another layout.
        InputError: the file cannot be read.
    """
    rows: list[list[int]] = []
    row_of: dict[int, int] = {}
    sections: list[list[int]] = []
    counts: Counter[str] = Counter()
    sizes = (("size", COCO_SIZES), ("relative_size", RELATIVE_SIZES))
    stats: dict[str, Any] = {"depth": Counter(), **{name: dict.fromkeys(dict(limits), 0) for name, limits in sizes}}
    following = last = 0  # where the next record of the section must begin; the row of the last annotation
    try:
        for key, _, offset, length, value in iterate_records(label_file):
            if key not in SECTIONS:
                if key not in ("info", "categories", CHECKSUM):
                    raise ValueError(f"the key {key} is not one of ours")
                if key == CHECKSUM and offset + length + len(b"}\n") != os.path.getsize(label_file):
                    raise ValueError("bytes follow its checksum")
                continue
            if not length:
                if key != SECTIONS[len(sections)]:
                    raise ValueError(f"section {key} is out of order")
                following = offset + len(b"[\n")
                sections.append([following, 0])
                continue
            if offset != following:
                raise ValueError(f"a record begins at byte {offset} instead of {following}")
            following = offset + length + len(SEPARATOR)
            sections[-1][1] = offset + length - sections[-1][0]
            counts[key] += 1
            if key == "images":
                if row_of.setdefault(value["id"], len(rows)) != len(rows):
                    raise ValueError(f"image id {value['id']} occurs twice")
                rows.append([value["id"], offset, length, 0, 0, 0, value["height"], value["width"], 0])
            elif key == "annotations":
                number = row_of[value["image_id"]]
                if number < last:
                    raise ValueError("annotations are not in the order of the images")
                row, last = rows[number], number
                row[3] = row[3] or offset
                row[4], row[5] = offset + length - row[3], row[5] + 1
                stats["depth"][value["depth"]] += 1
                for (name, limits), area in zip(sizes, (value["area"], value["area"] / (row[6] * row[7]))):
                    stats[name][size_name(area, limits)] += 1
        if len(sections) < len(SECTIONS):
            raise ValueError(f"it has no section {SECTIONS[len(sections)]}")
        for row in rows:
            row[8] = zlib.crc32(read_range(label_file, *row[3:5]), zlib.crc32(read_range(label_file, *row[1:3])))
        table = np.array([tuple(row) for row in rows], IMAGE_DTYPE)
        stats["depth"] = {str(depth): count for depth, count in sorted(stats["depth"].items())}
        stats.update({name: counts[name] for name in ("annotations", "skipped")})
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, ArithmeticError, StopIteration) as error:
        raise CorruptFileError(
            f"{label_file!r} is not as our label files are: {error!r:.120}; delete it and make it again with --resume"
        ) from error
    return ShardIndex(table, np.array(sections, np.int64), stats, os.path.getsize(label_file))


def size_name(value: float, sizes: tuple[tuple[str, float], ...]) -> str:
    """Name of the first size in `COCO_SIZES` or `RELATIVE_SIZES` whose limit is above ``value``."""
    return next(name for name, limit in sizes if value < limit)

"""Where each image lies in a label file, and counts over its masks: read off the file once, kept beside it."""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CorruptFileError
from ..structures.files import atomic_writer
from .scanner import CHECKSUM, readable
from .writer import SECTIONS, SEPARATOR

# One row per image. Lengths leave out the separators; annotations of an image are one range, their records joined
# by ",\n". The checksum is of the image record and this range.
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

# What each photo was when it was labeled, skipped ones included: length and time of the last change of its file (-1:
# there was none), and the CRC32 of its bytes (-1: unknown).
PHOTO_DTYPE = np.dtype([("image_id", "<i8"), ("bytes", "<i8"), ("mtime_ns", "<i8"), ("crc32", "<i8")])

# COCO's sizes, by mask area in pixels: small < 32^2 <= medium < 96^2 <= large.
COCO_SIZES = (("small", 32**2), ("medium", 96**2), ("large", math.inf))
# Sizes by the share of the image, which do not depend on its resolution.
RELATIVE_SIZES = (("<0.1%", 0.001), ("0.1-1%", 0.01), ("1-10%", 0.1), (">=10%", math.inf))

_CHECKSUM_LINE = re.compile(rb'"%s":(\d{1,10})\}\n?' % CHECKSUM.encode())
_CHUNK = 1 << 20
_CHECKED_BYTES = 4096  # at either end of a label file, see `_checksum`

_HEAD = b'{"info":{'
_SECOND_LINE = b'"categories":[{"id":1,"name":"entity"'

_IMAGE_ID = re.compile(rb'"image_id":(\d+)')
_AREA = re.compile(rb'"area":(\d+)')
_DEPTH = re.compile(rb'"depth":(\d+)')


@dataclass
class ShardIndex:
    """The index of one label file.

    Attributes:
        rows: (images,) of IMAGE_DTYPE, in the order of the file.
        sections: (3, 2) int64, offset and length of the records of skipped, images, annotations, separators between
            them included.
        stats: "annotations", "skipped": counts; "depth", "size", "relative_size": histograms over masks, name -> count.
        file_bytes: length of the label file, by which a stale index is noticed.
        photos: of PHOTO_DTYPE; None where the index was read off the label file, which does not tell.
    """

    rows: np.ndarray
    sections: np.ndarray
    stats: dict[str, Any]
    file_bytes: int
    photos: np.ndarray | None = None


def index_path(label_file: str) -> str:
    """The index that lies beside a label file."""
    return os.path.splitext(label_file)[0] + ".index.npz"


def load_index(label_file: str) -> ShardIndex:
    """The index beside a label file; where it is missing, stale or damaged, the file is scanned instead.

    It is stale where the file has another length, or begins or ends otherwise, than when the index was saved.

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
        if index.file_bytes == size and index.rows.dtype == IMAGE_DTYPE and checksum == _checksum(label_file, size):
            return index
    except Exception:  # numpy and zipfile raise nearly anything on damaged bytes
        pass  # the index is only a short cut: what it says is read off the file below
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
    if os.path.exists(index_path(label_file)):
        os.unlink(index_path(label_file))


def _checksum(label_file: str, size: int) -> int:
    """Of the two ends of a label file: the whole would take as long as a scan, and times do not survive copying."""
    with open(label_file, "rb") as file:
        head = file.read(_CHECKED_BYTES)
        file.seek(max(0, size - _CHECKED_BYTES))
        return zlib.crc32(file.read(_CHECKED_BYTES), zlib.crc32(head))


def _number(pattern: re.Pattern[bytes], body: bytes) -> int:
    found = pattern.search(body)
    if found is None:
        raise ValueError(f"a record without what {pattern.pattern!r} finds")
    return int(found.group(1))


def join_indices(indices: Sequence[ShardIndex], sections: Sequence[tuple[int, int]], file_bytes: int) -> ShardIndex:
    """The index of the file into which label files were joined, without reading that file.

    Args:
        indices: of the parts, at least one, in order; no image is in two of them.
        sections: offsets and lengths in the joined file, as `write_label_file` returns them.
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
    """The `info` of a label file, which stands on its first line.

    Raises:
        CorruptFileError: the file does not begin as our label files do.
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
    """Whether a file begins as our label files do; a COCO json of another origin is laid out otherwise.

    Raises:
        InputError: it cannot be read.
    """
    if not os.path.isfile(path):  # a pipe would wait for ever
        return False
    with readable(path), open(path, "rb") as file:
        if file.read(len(_HEAD)) != _HEAD:  # a json on one line may be long
            return False
        file.readline()
        return file.read(len(_SECOND_LINE)) == _SECOND_LINE


def check_label_file(label_file: str) -> None:
    """Compare the checksum at the end of a label file with its bytes. Files of older versions have none: scan them.

    Raises:
        CorruptFileError: they differ, or the file is cut off or laid out otherwise.
        OSError: it cannot be read.
    """
    with open(label_file, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
        last = tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :]
        found = _CHECKSUM_LINE.fullmatch(last)
        if found is None:
            scan_label_file(label_file)
            return
        file.seek(0)
        checksum, left = 0, size - len(last)
        while left > 0:
            data = file.read(min(_CHUNK, left))
            if not data:
                raise _cut_off(label_file)
            checksum, left = zlib.crc32(data, checksum), left - len(data)
    if checksum != int(found.group(1)):
        raise _damaged(label_file, checksum, int(found.group(1)))


def _cut_off(label_file: str) -> CorruptFileError:
    return CorruptFileError(f"{label_file!r} is cut off; delete it and make it again with --resume")


def _damaged(label_file: str, checksum: int, written: int) -> CorruptFileError:
    return CorruptFileError(
        f"{label_file!r} is damaged: its checksum is {checksum}, it was written with {written}; delete it and make it "
        "again with --resume"
    )


def scan_label_file(label_file: str) -> ShardIndex:
    """Read the index off a label file, line by line.

    Raises:
        CorruptFileError: the file is cut off, damaged or laid out otherwise.
    """
    scan = _Scan()
    with open(label_file, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                scan.line(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                raise CorruptFileError(
                    f"{label_file!r}, line {number} is not as our label files have it: {error!r:.120}"
                ) from error
    if not scan.ended:
        raise _cut_off(label_file)
    if scan.written not in (None, scan.checksum):
        raise _damaged(label_file, scan.checksum, scan.written)
    return scan.index()


class _Scan:
    """The state of one pass over a label file."""

    def __init__(self) -> None:
        self.offset = 0
        self.section = -1  # index in SECTIONS; -1 before the first
        self.ended = self._closed = False
        self.checksum = 0  # of the lines before the one that tells it
        self.written: int | None = None  # what that line tells
        self._sections = np.zeros((len(SECTIONS), 2), np.int64)
        self._rows: list[tuple[int, ...]] = []
        self._checksums: list[int] = []
        self._row_of: dict[int, int] = {}
        self._ranges: dict[int, list[int]] = {}  # row -> [offset, end, count] of its annotations
        self._counts: Counter[str] = Counter()
        self._depth: Counter[int] = Counter()
        self._size: Counter[str] = Counter()
        self._relative: Counter[str] = Counter()

    def line(self, line: bytes) -> None:
        if self.ended:
            raise ValueError("the file goes on after its end")
        body = line.rstrip(b"\n").rstrip(b",")
        if body == b"]" or body == b"]}":
            self._closed = True
            self.ended = self.section == len(SECTIONS) - 1 and body == b"]}"
        elif found := _CHECKSUM_LINE.fullmatch(line):
            self.written, self.ended = int(found.group(1)), self._closed and self.section == len(SECTIONS) - 1
            self.offset += len(line)
            return
        elif body.startswith(b'"') and body.endswith(b'":['):
            self.section += 1
            if self.section == len(SECTIONS) or body != b'"%s":[' % SECTIONS[self.section].encode():
                raise ValueError(f"section {body[:40]!r} is out of order")
            self._sections[self.section] = self.offset + len(line), 0
            self._closed = False
        elif self.section >= 0:
            if self._closed:
                raise ValueError("a record outside the sections")
            end = self.offset + len(body)
            self._sections[self.section, 1] = end - self._sections[self.section, 0]
            getattr(self, "_" + SECTIONS[self.section])(body, end)
        self.offset += len(line)
        self.checksum = zlib.crc32(line, self.checksum)

    def _skipped(self, body: bytes, end: int) -> None:
        self._counts["skipped"] += 1

    def _images(self, body: bytes, end: int) -> None:
        record = json.loads(body)
        if record["id"] in self._row_of:
            raise ValueError(f"image id {record['id']} stands twice")
        self._row_of[record["id"]] = len(self._rows)
        self._rows.append((record["id"], self.offset, len(body), record["height"], record["width"]))
        self._checksums.append(zlib.crc32(body))

    def _annotations(self, body: bytes, end: int) -> None:
        row = self._row_of[_number(_IMAGE_ID, body)]
        if self._ranges and row < next(reversed(self._ranges)):
            raise ValueError("annotations are not in the order of the images")
        found = self._ranges.setdefault(row, [self.offset, end, 0])
        separated = SEPARATOR + body if found[2] else body
        self._checksums[row] = zlib.crc32(separated, self._checksums[row])
        found[1] = end
        found[2] += 1
        area = _number(_AREA, body)
        self._counts["annotations"] += 1
        self._depth[_number(_DEPTH, body)] += 1
        self._size[_size_name(area, COCO_SIZES)] += 1
        self._relative[_size_name(area / (self._rows[row][3] * self._rows[row][4]), RELATIVE_SIZES)] += 1

    def index(self) -> ShardIndex:
        rows = np.zeros(len(self._rows), IMAGE_DTYPE)
        for row, (image_id, offset, length, height, width) in enumerate(self._rows):
            start, stop, count = self._ranges.get(row, (0, 0, 0))
            checksum = self._checksums[row]
            rows[row] = (image_id, offset, length, start, stop - start, count, height, width, checksum)
        stats = {
            "annotations": self._counts["annotations"],
            "skipped": self._counts["skipped"],
            "depth": {str(d): self._depth[d] for d in range(max(self._depth, default=-1) + 1)},
            "size": {name: self._size[name] for name, _ in COCO_SIZES},
            "relative_size": {name: self._relative[name] for name, _ in RELATIVE_SIZES},
        }
        return ShardIndex(rows, self._sections, stats, self.offset)


def _size_name(value: float, sizes: tuple[tuple[str, float], ...]) -> str:
    return next(name for name, limit in sizes if value < limit)

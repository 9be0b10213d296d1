"""Writing of label files: each image, annotation and skipped image is a json record on one line.

A label file is a plain COCO json file whose layout allows seeking to a record and copying records without parsing:

    {"info":{...},
    "categories":[...],
    "skipped":[
    {record},
    {record}
    ],
    "images":[
    ...
    ],
    "annotations":[
    ...
    ],
    "crc32":1234567890}

`crc32` is the CRC32 of all bytes before that key, to detect damage. `skipped` lists the input images without labels,
with reasons. The annotations of an image are adjacent and in the order of the images. The content does not depend on
time or machine: the same images and configuration give the same bytes.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import CorruptFileError, InputError
from ..structures.files import atomic_writer, open_regular, write_json
from .scanner import CHECKSUM, readable

CATEGORIES = [{"id": 1, "name": "entity", "supercategory": "entity"}]
SECTIONS = ("skipped", "images", "annotations")
SEPARATOR = b",\n"
_CHUNK = 1 << 20  # bytes


def dump_line(record: Any) -> bytes:
    """Serialize a json record as ASCII on one line, with floats rounded to 6 digits.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(_rounded(record), separators=(",", ":"), allow_nan=False).encode("ascii")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


def image_record(image_id: int, file_name: str, height: int, width: int) -> dict[str, Any]:
    """COCO image record; ``height`` and ``width`` in pixels, after the EXIF rotation."""
    return {"id": image_id, "file_name": file_name, "height": int(height), "width": int(width)}


def write_label_file(
    path: str, info: Mapping[str, Any], sections: Mapping[str, Iterable[Iterable[bytes]]]
) -> list[tuple[int, int]]:
    """Write a label file atomically.

    Args:
        path: the file to write; replaced if it exists.
        info: the COCO `info`.
        sections: blocks per name of SECTIONS, in order. A block is a non-empty iterable of chunks that form one or more
            records, already joined by SEPARATOR.

    Returns:
        Offset and length in bytes of the records per name of SECTIONS, including separators between them.
    """
    ranges = []
    length = checksum = 0
    with atomic_writer(path) as file:

        def write(data: bytes) -> None:
            nonlocal length, checksum
            file.write(data)
            length += len(data)
            checksum = zlib.crc32(data, checksum)

        write(b'{"info":' + dump_line(info) + SEPARATOR)
        write(b'"categories":' + dump_line(CATEGORIES))
        for name in SECTIONS:
            write(SEPARATOR + b'"%s":[\n' % name.encode())
            start = length
            for block in sections[name]:
                if length > start:
                    write(SEPARATOR)
                for chunk in block:
                    write(chunk)
            ranges.append((start, length - start))
            write(b"\n]" if length > start else b"]")
        write(SEPARATOR)
        file.write(b'"%s":%d}\n' % (CHECKSUM.encode(), checksum))
    return ranges


def write_checked_json(path: str, value: Mapping[str, Any], writer: str = "") -> None:
    """Write a json object with an additional key for the checksum of its content; read it with `read_checked_json`."""
    write_json(path, {**value, CHECKSUM: zlib.crc32(_canonical(value))}, writer)


def read_checked_json(path: str) -> dict[str, Any]:
    """Read a file written by `write_checked_json`.

    Raises:
        CorruptFileError: a wrong checksum, or not a json object.
        InputError: the file cannot be read.
    """
    value = read_json(path)
    checksum = value.pop(CHECKSUM, None) if isinstance(value, dict) else None
    if checksum != zlib.crc32(_canonical(value)):
        raise CorruptFileError(f"{path!r} is damaged: its checksum does not match its content")
    return value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def read_json(path: str | os.PathLike) -> Any:
    """Read a small json file other than labels, such as metrics.

    Raises:
        InputError: the file cannot be read.
        CorruptFileError: the file is not json.
    """
    try:
        with readable(path), open_regular(path) as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is not valid json ({str(error):.100}); it may be truncated") from error


def read_range(path: str, offset: int, length: int) -> bytes:
    """Bytes [offset, offset + length) of a file.

    Raises:
        CorruptFileError: the file is shorter.
    """
    return b"".join(copy_range(path, offset, length))


def copy_range(path: str, offset: int, length: int) -> Iterator[bytes]:
    """Yield the bytes [offset, offset + length) of a file in chunks.

    Raises:
        CorruptFileError: the file is shorter.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        while length > 0:
            data = file.read(min(_CHUNK, length))
            if not data:
                raise CorruptFileError(f"{path!r} is shorter than its index says; delete the index file beside it")
            length -= len(data)
            yield data

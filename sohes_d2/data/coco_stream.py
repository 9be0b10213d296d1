"""Big COCO json files image by image, in bounded memory: the file is scanned once, records are read when asked for."""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

_BLANKS = re.compile(r"[ \t\r\n]*")
_DELIMITERS = frozenset(" \t\r\n,:]}")
_CHUNK = 1 << 20
_LARGEST_VALUE = 1 << 28  # bytes; a value that does not end by then is a damaged file, not a record
_IMAGE_FIELDS = ("id", "file_name", "coco_url", "height", "width")


class CocoFileError(ValueError):
    """A file that is not a COCO json, or a damaged one; the message says what and where."""


class CocoFile:
    """A COCO json as a list of images, each with its annotations.

    What stays in memory are the image records (the fields that matter here) and 24 bytes per annotation.

    Attributes:
        path: the file.
        images: image records (`id`, `file_name`, `coco_url`, `height`, `width`, as far as the file has them), sorted
            by id.
    """

    def __init__(self, path: str):
        """Scan the file once.

        Raises:
            CocoFileError: not json, without `images` or `annotations`, or with records that lack their ids.
            OSError: the file cannot be read.
        """
        self.path = os.fspath(path)
        self.images: list[dict[str, Any]] = []
        image_ids, offsets, lengths = array("q"), array("q"), array("q")
        seen = set()
        for key, offset, length, value in iterate_records(self.path):
            seen.add(key)
            try:
                if key == "images" and length:
                    self.images.append({field: value[field] for field in _IMAGE_FIELDS if field in value})
                    _ = value["id"], value["height"], value["width"]
                elif key == "annotations" and length:
                    image_ids.append(value["image_id"])
                    offsets.append(offset)
                    lengths.append(length)
            except (KeyError, TypeError) as error:
                raise CocoFileError(f"{self.path!r}, byte {offset}: a record of `{key}` lacks {error}") from error
        for key in ("images", "annotations"):
            if key not in seen:
                raise CocoFileError(f"{self.path!r} has no `{key}`: it is not a COCO json with annotations")
        self.images.sort(key=lambda image: image["id"])
        order = np.argsort(np.asarray(image_ids, np.int64), kind="stable")
        self._image_ids = np.asarray(image_ids, np.int64)[order]
        self._offsets = np.asarray(offsets, np.int64)[order]
        self._lengths = np.asarray(lengths, np.int64)[order]
        self._file = open(self.path, "rb")

    def annotations(self, image_id: int) -> list[dict[str, Any]]:
        """The annotations of an image, in the order of the file; empty for an image that has none."""
        start, stop = np.searchsorted(self._image_ids, [image_id, image_id + 1])
        descriptor = self._file.fileno()
        return [
            json.loads(os.pread(descriptor, int(self._lengths[k]), int(self._offsets[k]))) for k in range(start, stop)
        ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def iterate_records(path: str) -> Iterator[tuple[str, int, int, Any]]:
    """The records of every top-level list of a json file, in the order of the file.

    Yields:
        (key, offset, length, value): the top-level key, the bytes of the record in the file, and the record. A list is
        announced by a record of length 0 and value None, so that an empty one is seen too. Other top-level values
        come as one record each.

    Raises:
        CocoFileError: not a json object, or cut off.
    """
    with open(path, "rb") as file:
        scanner = _Scanner(path, file)
        scanner.take("{")
        while scanner.peek() != "}":
            key = scanner.value()[2]
            scanner.take(":")
            if scanner.peek() == "[":
                yield key, scanner.base + scanner.at, 0, None
                scanner.take("[")
                while scanner.peek() != "]":
                    yield (key, *scanner.value())
                    if scanner.peek() != "]":
                        scanner.take(",")
                scanner.take("]")
            else:
                yield (key, *scanner.value())
            if scanner.peek() != "}":
                scanner.take(",")


class _Scanner:
    """Reads one json value after another from a file, a chunk at a time.

    The bytes are held as Latin-1 text, one character per byte, so that positions in the text are positions in the
    file. The bytes of a UTF-8 character never look like one that has a meaning in json.
    """

    def __init__(self, path: str, file: BinaryIO):
        self._path, self._file = path, file
        self._decode = json.JSONDecoder().raw_decode
        self.text = ""
        self.base = 0  # offset of the text in the file
        self.at = 0  # position in the text

    def peek(self) -> str:
        """The next character that is not blank."""
        while True:
            self.at = _BLANKS.match(self.text, self.at).end()
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._fill(_CHUNK):
                raise self._error("the file is cut off")

    def take(self, character: str) -> None:
        """Step over a character that must be there."""
        found = self.peek()
        if found != character:
            raise self._error(f"expected {character!r}, found {found!r}")
        self.at += 1

    def value(self) -> tuple[int, int, Any]:
        """Offset and length in the file, and value, of the next json value."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, stop = self._decode(self.text, self.at)
                if self.text[stop : stop + 1] in _DELIMITERS:  # else a number may go on in the next chunk
                    break
                if not self._fill(size):
                    break
            except ValueError as error:
                if len(self.text) - self.at > _LARGEST_VALUE or not self._fill(size):
                    raise self._error(f"a damaged or cut off value ({error})") from error
            size *= 2
        piece = self.text[self.at : stop]
        if not piece.isascii():
            value = json.loads(piece.encode("latin-1"))
        offset, self.at = self.base + self.at, stop
        return offset, len(piece), value

    def _fill(self, size: int) -> bool:
        data = self._file.read(size)
        if data:
            self.text = self.text[self.at :] + data.decode("latin-1")
            self.base += self.at
            self.at = 0
        return bool(data)

    def _error(self, message: str) -> CocoFileError:
        return CocoFileError(f"{self._path!r}, byte {self.base + self.at}: {message}; download or unpack it again")

"""Streaming reader of large json files, record by record, in bounded memory."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

from ..errors import CorruptFileError, InputError
from ..structures.files import open_regular

CHECKSUM = "crc32"  # top-level key of label files of this project: CRC32 of all bytes before the key
RESULTS = "results"  # key of the records of a file that is a list

_BLANKS = re.compile(r"[ \t\r\n]*")
_DELIMITERS = frozenset(" \t\r\n,:]}")
_CHUNK = 1 << 20
_LARGEST_VALUE = 1 << 28  # bytes; a longer value means a damaged file
OUR_HEAD = b'{"info":{'  # of label files of this project
_UTF8_MARK = b"\xef\xbb\xbf"
_FOREIGN = {  # first bytes of files that are not json, with the remedy
    b"\x1f\x8b": "is compressed by gzip; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"BZh": "is compressed by bzip2; unpack it",
    b"\xfd7zXZ": "is compressed by xz; unpack it",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
    b"<": "is html or xml; download the json file itself",
    b"version https://git-lfs": "is a pointer of git lfs; run `git lfs pull`",
}


class Record(NamedTuple):
    """A value of a json file.

    Attributes:
        key: its top-level key; RESULTS in a file that is a list.
        index: its position in the list; -1 for a value outside a list, and for the start of a list, which is reported
            before its items so that empty lists are found, too.
        offset, length: its position in the file, in bytes; length 0 for the start of a list.
        value: the json value; None for the start of a list.
    """

    key: str
    index: int  # type: ignore[assignment]  # a field that hides tuple.index
    offset: int
    length: int
    value: Any

    @property
    def opens_list(self) -> bool:
        """Whether this is the start of a list."""
        return self.length == 0


@contextmanager
def readable(path: str | os.PathLike) -> Iterator[None]:
    """Context manager that converts an OSError to an InputError that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {os.fspath(path)}: {error.strerror or error}; check the path") from error


def iterate_records(path: str) -> Iterator[Record]:
    """Yield the records of all top-level lists of a json file in file order; other top-level values give one record.

    A UTF-8 byte order mark is allowed. NaN and infinities are read as in Python. The checksum of label files of this
    project is verified.

    Raises:
        InputError: the file cannot be opened, or is not a json object or list.
        CorruptFileError: not json, truncated, damaged, or with a wrong checksum.
    """
    with readable(path), open_regular(path) as file:
        yield from _records(_Scanner(os.fspath(path), file))


def _records(scanner: _Scanner) -> Iterator[Record]:
    if scanner.peek() == "[":
        yield from _list(scanner, RESULTS)
    else:
        seen: set[str] = set()
        for _ in scanner.items("{}"):
            checksum = scanner.checksum()
            key = scanner.value()[2]
            if not isinstance(key, str):
                raise scanner.error(f"expected the name of a key, found {key!r:.40}")
            if key in seen:
                raise scanner.error(f"the key {key!r:.40} occurs twice; keep one")
            seen.add(key)
            scanner.take(":")
            if scanner.peek() == "[":
                yield from _list(scanner, key)
                continue
            record = Record(key, -1, *scanner.value())
            if key == CHECKSUM and checksum not in (None, record.value):
                raise CorruptFileError(
                    f"{scanner.path} is damaged: its checksum is {checksum}, it was written with {record.value}; make "
                    f"it or copy it again, or take the key `{CHECKSUM}` out if it was edited"
                )
            yield record
    if scanner.peek(at_end=True):
        raise scanner.error("the json value has ended, but the file continues")


def _list(scanner: _Scanner, key: str) -> Iterator[Record]:
    yield Record(key, -1, scanner.place, 0, None)
    for index in scanner.items("[]"):
        yield Record(key, index, *scanner.value())


class _Scanner:
    """Reads json values one after another from a file, in chunks.

    The bytes are decoded as Latin-1, one character per byte, so that positions in the text are positions in the file.
    Bytes of multi-byte UTF-8 characters are never confused with json syntax.
    """

    def __init__(self, path: str, file: BinaryIO):
        self.path, self._file = path, file
        self._decode = json.JSONDecoder().raw_decode
        self._text = ""
        self._base = 0  # offset of the text in the file
        self._at = 0  # position in the text
        self._checksum = 0  # CRC32 of the bytes before the text
        self._fill(max(_CHUNK, 64))
        head = self._text[:64].encode("latin-1")
        self._is_ours = head.startswith(OUR_HEAD)
        if head.startswith(_UTF8_MARK):
            self._at = len(_UTF8_MARK)
        for start, remedy in _FOREIGN.items():
            if head.startswith(start):
                raise CorruptFileError(f"{self.path} is not json: it {remedy}")

    @property
    def place(self) -> int:
        """Offset of the next character in the file."""
        return self._base + self._at

    def checksum(self) -> int | None:
        """CRC32 of all bytes before the next value; None in a file without the layout of our label files, such as one
        that was rewritten by a script."""
        self.peek()
        if not self._is_ours or self._text[self._at - 1] != "\n":
            return None
        return zlib.crc32(self._text[: self._at].encode("latin-1"), self._checksum)

    def peek(self, at_end: bool = False) -> str:
        """The next non-blank character; "" at the end of the file, which is an error unless ``at_end``."""
        while True:
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._fill(_CHUNK):
                break
        if not at_end:
            raise self.error("the file is cut off" if self.place else "the file is empty")
        return ""

    def take(self, character: str) -> None:
        """Skip an expected character."""
        found = self.peek()
        if found != character:
            raise self.error(f"expected {character!r}, found {found!a}")
        self._at += 1

    def items(self, brackets: str) -> Iterator[int]:
        """Skip brackets and commas; yields the index of each item, which the caller must read."""
        self.take(brackets[0])
        number = 0
        while self.peek() != brackets[1]:
            yield number
            number += 1
            if self.peek() != brackets[1]:
                self.take(",")
        self.take(brackets[1])

    def value(self) -> tuple[int, int, Any]:
        """Offset and length in the file, and value, of the next json value."""
        self.peek()
        size = _CHUNK
        while True:
            try:
                value, stop = self._decode(self._text, self._at)
                if self._text[stop : stop + 1] in _DELIMITERS:  # otherwise a number may continue in the next chunk
                    break
                if not self._fill(size):
                    break
            except RecursionError as error:
                raise self.error("a value that is nested too deeply") from error
            except ValueError as error:
                if len(self._text) - self._at > _LARGEST_VALUE or not self._fill(size):
                    raise self.error(f"a damaged or cut off value ({str(error):.100})") from error
            size *= 2
        piece = self._text[self._at : stop]
        if not piece.isascii():
            try:
                value = json.loads(piece.encode("latin-1").decode("utf-8"))
            except ValueError as error:
                raise self.error("text that is not UTF-8") from error
        offset, self._at = self.place, stop
        return offset, len(piece), value

    def error(self, message: str) -> CorruptFileError:
        """Error at the current position of the file."""
        return CorruptFileError(
            f"{self.path} is not valid json, or truncated: {message} (byte {self.place}); download or copy it again"
        )

    def _fill(self, size: int) -> bool:
        data = self._file.read(size)
        if data:
            done = max(0, self._at - 1)  # keep one character, which `checksum` reads
            self._checksum = zlib.crc32(self._text[:done].encode("latin-1"), self._checksum)
            self._text = self._text[done:] + data.decode("latin-1")
            self._base += done
            self._at -= done
        return bool(data)

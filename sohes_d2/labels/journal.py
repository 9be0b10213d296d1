"""Append-only journal of the finished images of a shard, robust against kills at any time."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ..errors import FolderBusyError
from ..structures.files import lock_file, output_errors, write_all
from .writer import SEPARATOR, dump_line

# Separator of the records of a line. A raw tab is white space in json and never part of a json string.
_TAB = b",\t"
_COMMIT = b'{"commit":'
_CHECKSUM_BYTES = 10  # end of a line: a tab, the CRC32 of the bytes before as 8 hexadecimal digits, a line break


class ShardJournal:
    """The finished images of one shard in progress.

    One line per image: a json array of its image record and annotations, or of its `skipped` record alone. The images
    of a work unit are written and flushed to disk together, followed by a commit line. Every line ends with a checksum.
    Reopening keeps only complete and intact units: the file is truncated after the last commit line, and units with a
    damaged line are ignored, so their images are processed again.

    Attributes:
        path: the journal.
        done: ids of the images in the journal.
        photos: image id -> numbers passed to `append`.
        damaged: number of damaged lines found when it was opened.
    """

    def __init__(self, path: str):
        """Open or create a journal.

        Raises:
            FolderBusyError: another process holds it.
        """
        self.path = path
        self._where: dict[int, tuple[int, int, bool]] = {}  # offset and length of the line; whether it was skipped
        self.photos: dict[int, tuple[int, ...]] = {}
        self.damaged = 0
        with output_errors(path):
            self._file = open(path, "a+b")
            if not lock_file(self._file, wait=False):
                self._file.close()
                raise FolderBusyError(
                    f"another process is writing {path!r}; wait for it, or give each job its own --shard I/N"
                )
            self._end = self._recover()
            self._file.truncate(self._end)

    @property
    def done(self):
        return self._where.keys()

    def forget(self, image_ids: Iterable[int]) -> None:
        """Remove images from ``done``; the file is unchanged until they are added again."""
        for image_id in image_ids:
            self._where.pop(image_id, None)

    def append(
        self,
        unit: int,
        results: Sequence[tuple[int, bool, Sequence[bytes]]],
        photos: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        """Add a finished work unit and flush it to disk.

        Args:
            unit: number of the unit, for human readers of the file.
            results: per image its id, whether it was skipped, and its json lines (`dump_line`): the image record
                followed by its annotations, or the `skipped` record.
            photos: image id -> integers to store with it.

        Raises:
            OutputError: the unit could not be written; no further units may be added.
        """
        offset = self._end
        places = {}
        data = bytearray()
        for image_id, skipped, lines in results:
            line = b"[" + _TAB.join(lines) + b"]"
            places[image_id] = (offset + len(data), len(line), skipped)
            data += _with_checksum(line)
        photos = {image_id: photos[image_id] for image_id in places if photos and image_id in photos}
        commit = {"images": len(results), "photos": [[image_id, *numbers] for image_id, numbers in photos.items()]}
        data += _with_checksum(_COMMIT + b"%d,%s" % (unit, dump_line(commit)[1:]))
        with output_errors(self.path):
            write_all(self._file.fileno(), data)
            os.fsync(self._file.fileno())
        self._end += len(data)
        self._where.update(places)
        self.photos.update(photos)

    def blocks(self, image_ids: Sequence[int]) -> dict[str, Iterator[list[bytes]]]:
        """Sections of a label file with these images, in order, for `write_label_file`: blocks of `skipped`, `images`
        and `annotations`, one per image that has any."""
        kept = [i for i in image_ids if not self._where[i][2]]
        return {
            "skipped": ([self._lines(i)[0]] for i in image_ids if self._where[i][2]),
            "images": ([self._lines(i)[0]] for i in kept),
            "annotations": ([SEPARATOR.join(lines[1:])] for lines in map(self._lines, kept) if len(lines) > 1),
        }

    def close(self) -> None:
        """Close the file; it stays on disk for a later run."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, after its shard is written."""
        # Unlink before closing, which releases the lock: another process could reopen the file in between.
        os.unlink(self.path)
        self._file.close()

    def _lines(self, image_id: int) -> list[bytes]:
        offset, length, _ = self._where[image_id]
        data = os.pread(self._file.fileno(), length, offset)
        return data[1:-1].split(_TAB)

    def _recover(self) -> int:
        """Read the complete units of an existing journal; returns the length of the file up to the last commit."""
        self._file.seek(0)
        committed = offset = 0
        places: dict[int, tuple[int, int, bool]] = {}
        for line in self._file:
            start, offset = offset, offset + len(line)
            body = _without_checksum(line)
            if body is None:
                self.damaged += line.endswith(b"\n")  # without a line break, it was truncated by a kill
            elif body.startswith(_COMMIT):
                # another count means that a line of this unit, or the commit line of the previous one, is damaged
                commit = json.loads(body)
                if commit["images"] == len(places):
                    self._where.update(places)
                    self.photos.update((i, tuple(numbers)) for i, *numbers in commit["photos"])
                places = {}
                committed = offset
            else:
                first = json.loads(body[1:-1].split(_TAB, 1)[0])
                places[first["id"]] = (start, len(body), "reason" in first)
        return committed


def _with_checksum(line: bytes) -> bytes:
    return b"%s\t%08x\n" % (line, zlib.crc32(line))


def _without_checksum(line: bytes) -> bytes | None:
    """The original line before `_with_checksum`; None if it is damaged or truncated."""
    body = line[:-_CHECKSUM_BYTES]
    return body if body and line == _with_checksum(body) else None

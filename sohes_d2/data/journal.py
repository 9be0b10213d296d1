"""What a shard in progress has finished so far: an append-only file that survives a kill at any byte."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence

from .records import SEPARATOR

try:
    import fcntl
except ImportError:  # not a posix system: two runs into one folder are then not noticed
    fcntl = None

# Between records of one line. A raw tab is white space to json and never stands inside a json string.
_TAB = b",\t"
_COMMIT = b'{"commit":'


class JournalBusyError(RuntimeError):
    """Another process is writing the same shard."""


class ShardJournal:
    """The finished images of one shard in progress.

    One line per image: a json array of its image record and its annotations, or of its `skipped` record alone. The
    images of a work unit are written and flushed to disk together, followed by a commit line. Opening the file
    again keeps whole units only: everything behind the last commit line is cut off, so a unit is either there or is
    done again.

    Attributes:
        path: the journal.
        done: ids of the images in it.
    """

    def __init__(self, path: str):
        """Open or create a journal.

        Raises:
            JournalBusyError: another process holds it.
        """
        self.path = path
        self._where: dict[int, tuple[int, int]] = {}
        self._skipped: set[int] = set()
        self._file = open(path, "a+b")
        self._lock()
        self._file.truncate(self._recover())
        self._file.seek(0, os.SEEK_END)

    @property
    def done(self):
        return self._where.keys()

    def append(self, unit: int, results: Sequence[tuple[int, bool, Sequence[bytes]]]) -> None:
        """Add a finished work unit and flush it to disk.

        Args:
            unit: number of the unit, for the reader of the file.
            results: per image its id, whether it was skipped, and its json lines (`dump_line`): the image record
                followed by its annotations, or the `skipped` record.
        """
        offset = self._file.tell()
        places = {}
        data = bytearray()
        for image_id, skipped, lines in results:
            line = b"[" + _TAB.join(lines) + b"]\n"
            places[image_id] = (offset + len(data), len(line), skipped)
            data += line
        data += _COMMIT + b"%d}\n" % unit
        self._file.write(data)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._remember(places)

    def skipped_blocks(self, image_ids: Sequence[int]) -> Iterator[list[bytes]]:
        """The `skipped` records of those among ``image_ids`` that were skipped, as blocks for `write_label_file`."""
        return ([self._lines(i)[0]] for i in image_ids if i in self._skipped)

    def image_blocks(self, image_ids: Sequence[int]) -> Iterator[list[bytes]]:
        """The image records of the others."""
        return ([self._lines(i)[0]] for i in image_ids if i not in self._skipped)

    def annotation_blocks(self, image_ids: Sequence[int]) -> Iterator[list[bytes]]:
        """The annotations of the others, one block per image that has any."""
        for i in image_ids:
            if i not in self._skipped:
                lines = self._lines(i)[1:]
                if lines:
                    yield [SEPARATOR.join(lines)]

    def close(self) -> None:
        """Close the file; it stays on disk for a later run."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal, once its shard stands."""
        # unlink first: while the lock is held nobody else can have opened it anew
        os.unlink(self.path)
        self._file.close()

    def _lines(self, image_id: int) -> list[bytes]:
        offset, length = self._where[image_id]
        data = os.pread(self._file.fileno(), length, offset)
        return data[1:-2].split(_TAB)

    def _remember(self, places: dict[int, tuple[int, int, bool]]) -> None:
        for image_id, (offset, length, skipped) in places.items():
            self._where[image_id] = (offset, length)
            if skipped:
                self._skipped.add(image_id)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise JournalBusyError(
                f"another process is writing {self.path!r}; wait for it, or give each job its own --shard I/N"
            ) from error
        except OSError:  # a file system without locks: users there must not start one job twice
            return

    def _recover(self) -> int:
        """Read the whole units of an existing journal; returns the length of the file up to the last commit."""
        self._file.seek(0)
        committed = offset = 0
        places: dict[int, tuple[int, int, bool]] = {}
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if line.startswith(_COMMIT):
                self._remember(places)
                places = {}
                committed = offset + len(line)
            else:
                try:
                    first = json.loads(line[1:-2].split(_TAB, 1)[0])
                except ValueError:
                    break  # blocks that never reached the disk read as zeros after a power cut
                places[first["id"]] = (offset, len(line), "reason" in first)
            offset += len(line)
        return committed

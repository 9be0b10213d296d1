"""The one writer: files appear whole or not at all, and folders belong to one run at a time.

A file is written under a temporary name beside its place, flushed to disk and renamed, so that a kill, a full disk or a
power cut at any moment leaves the older file or the new one, never a part. Errors of the disk become `OutputError`.
"""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, Any, BinaryIO

from ..errors import FolderBusyError, InputError, OutputError

try:
    import fcntl
except ImportError:  # not a posix system
    fcntl = None  # type: ignore[assignment]  # mypy has no optional imports

TEMPORARY = ".tmp"  # suffix of a file in progress
_LOCK, _GATE = ".{}.lock", ".gate.lock"
_GATE_SECONDS = 60.0  # it is held for the time that a folder takes to open

_ROOM = "free some space there and run the command again; what was written before is as it was"
_PERMISSION = "choose another place, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no file of this size",
    errno.EIO: "the disk or network drive does not work as it should; choose another place",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: "its folder is not there (any more)",
    errno.EISDIR: "a folder is in the way",
    errno.ENOTDIR: "a file is in the way of its folder",
}


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Errors of the disk within, as errors of writing ``path``.

    Raises:
        OutputError: in place of any OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = "; ".join(filter(None, (error.strerror or str(error), _REMEDIES.get(error.errno or 0))))
        raise OutputError(f"{os.fspath(path)!r} cannot be written: {reason}") from error


class atomic_writer:
    """``with atomic_writer(path) as file``: binary writing that appears under ``path`` as a whole, on disk, or not at
    all.

    A killed process leaves a file with the suffix ``.tmp``, which the next writing of ``path`` takes over. Processes
    that write one path at the same time wait for one another where the file system has locks; elsewhere they must give
    themselves different ``writer`` names. A symbolic link stays one, and an irregular file (a pipe, /dev/stdout)
    is written to as it is.

    Raises:
        OutputError: the file cannot be written; the older one is as it was. Also where a library that was given the
            file hides the error in one of its own.
    """

    def __init__(self, path: str | os.PathLike[str], writer: str = ""):
        self.path = os.fspath(path)
        self._target = os.path.realpath(self.path)
        self._temporary = f"{self._target}{writer}{TEMPORARY}"

    def __enter__(self) -> BinaryIO:
        with output_errors(self.path):
            if os.path.isdir(self._target):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.path)
            self._in_place = os.path.exists(self._target) and not os.path.isfile(self._target)
            self._raw = _RawFile(self._target, "wb") if self._in_place else _open_temporary(self._temporary)
        self._file = io.BufferedWriter(self._raw, 1 << 20)
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        with output_errors(self.path), ExitStack() as stack:
            stack.callback(self._abandon)
            if kind is None:
                self._finish()
                stack.pop_all()
            elif self._raw.failure is not None and isinstance(error, Exception):
                raise self._raw.failure

    def _finish(self) -> None:
        self._file.flush()
        if self._in_place:
            self._file.close()
            return
        os.fsync(self._raw.fileno())
        os.replace(self._temporary, self._target)  # before the file, and its lock with it, is closed
        self._file.close()
        sync_folder(os.path.dirname(self._target))

    def _abandon(self) -> None:
        if not self._in_place:
            with suppress(OSError):
                os.unlink(self._temporary)
        with suppress(OSError):
            self._raw.close()
        with suppress(OSError, ValueError):
            self._file.close()


class _RawFile(io.FileIO):
    """Remembers the error of a write, which libraries that write to a file do not always hand on."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _open_temporary(path: str) -> _RawFile:
    """An empty file, locked until it is closed; waits for the process that has it."""
    while True:
        file = _RawFile(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666), "wb")
        try:
            lock_file(file)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    file.truncate(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()  # it was renamed while we waited


def lock_file(file: IO[Any], wait: bool = True) -> bool:
    """Whether a file is this process's alone now, until it is closed. True, too, on a file system without locks.

    Args:
        file: opened.
        wait: for the process that has it.
    """
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def open_regular(path: str | os.PathLike[str], pipes: bool = False) -> BinaryIO:
    """Open a file for reading. Files that are not regular are refused unopened: opening could block or have effects.

    Args:
        path: of the file.
        pipes: take a pipe, too. A pipe without a writer is empty.

    Raises:
        OSError: it cannot be opened; ``strerror`` says why.
    """

    def is_file(found: os.stat_result) -> bool:
        return stat.S_ISREG(found.st_mode) or pipes and stat.S_ISFIFO(found.st_mode)

    path = os.fspath(path)
    try:
        found = os.stat(path)
        if is_file(found):
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
            os.set_blocking(descriptor, True)
            file = open(descriptor, "rb")
            if is_file(os.fstat(descriptor)):  # a path can change in between
                return file
            file.close()
        elif stat.S_ISDIR(found.st_mode):
            os.scandir(path).close()
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file", path)
    except FileNotFoundError as error:
        reason = "a link to a file that does not exist" if os.path.islink(path) else "the file does not exist"
        raise FileNotFoundError(error.errno, reason, path) from error
    except PermissionError as error:
        reason = f"no permission to {'list the folder' if os.path.isdir(path) else 'read the file'}"
        raise PermissionError(error.errno, reason, path) from error
    raise OSError(errno.EINVAL, "no regular file (a pipe, socket or device)", path)


def sync_folder(folder: str) -> None:
    """Flush a folder's entries to disk, so that a rename or a new file survives a power cut."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: str | os.PathLike[str], folder: bool, option: str = "--output") -> None:
    """Make sure that a file or folder can be written, before any work is done for it. Nothing is created.

    Args:
        path: of the output; it may exist, as may the folders above it.
        folder: whether it is to be a folder.
        option: that named it, for the message.

    Raises:
        InputError: the path is blocked, or permission is missing.
    """
    path = os.fspath(path)
    shown = path if len(path) <= 200 else f"{path[:200]}..."
    wanted, kind = f"{option} {shown!r}", "folder" if folder else "file"
    try:
        if not path or "\0" in path:
            raise InputError(f"{wanted} is no path; name a {kind}")
        if os.path.exists(path) and os.path.isdir(path) != folder:
            raise InputError(f"{wanted} is a {'file' if folder else 'folder'}; name a {kind} instead")
        existing = os.path.abspath(path)
        if not folder:
            existing = os.path.dirname(existing)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # raises where the name is too long
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
    except OSError as error:
        raise InputError(f"{wanted} cannot be written: {error.strerror}") from error
    if not os.path.isdir(existing):
        raise InputError(f"{wanted} cannot be written: {existing!r} is no folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{wanted} cannot be written: no permission to write into {existing!r}; choose another place")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file, see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8, line ends as they are, see `atomic_writer`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, writer: str = "", indent: int | None = 1) -> None:
    """Write a json file; keys keep their order.

    Args:
        path: the file.
        value: of json; numbers must be finite.
        writer: as in `atomic_writer`.
        indent: spaces a level; None for all on one line.

    Raises:
        ValueError: a number that json does not have (NaN, infinity).
        OutputError: as of `atomic_writer`.
    """
    data = json.dumps(value, indent=indent, allow_nan=False).encode("ascii") + b"\n"
    with atomic_writer(path, writer) as file:
        file.write(data)


def write_picture(path: str | os.PathLike[str], picture: Any, kind: str, **options: Any) -> None:
    """Write a picture.

    Args:
        path: the file.
        picture: of Pillow, or an array, (H, W, 3) uint8.
        kind: "PNG" or "JPEG".
        options: of Pillow's ``save``.
    """
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    write_bytes(path, buffer.getvalue())


class LineFile:
    """Whole lines at the end of a file that may be there already. A last line that a kill cut off is taken away."""

    def __init__(self, path: str | os.PathLike[str]):
        """Open or create the file.

        Raises:
            OutputError: it cannot be opened.
        """
        self.path = os.fspath(path)
        with output_errors(self.path):
            self._file = open(self.path, "a+b", buffering=0)
            self._file.seek(0)
            self._file.truncate(self._file.read().rfind(b"\n") + 1)  # whole lines only

    def append(self, lines: Iterable[str]) -> None:
        """Add lines, without their line breaks, and flush them to disk: all of them, or none.

        Raises:
            OutputError: none was added.
        """
        data = "".join(f"{line}\n" for line in lines).encode("utf-8")
        end = os.fstat(self._file.fileno()).st_size
        try:
            with output_errors(self.path):
                write_all(self._file.fileno(), data)
                os.fsync(self._file.fileno())
        except OutputError:
            with suppress(OSError):
                self._file.truncate(end)
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    """`os.write` until nothing is left."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


class FolderLock:
    """The right to write into a folder, held until `release` or the end of the process, however that comes.

    Several jobs that share out one piece of work may hold it together (``job`` of ``jobs``); others are excluded.
    It costs hidden files in the folder (``.gate.lock``, ``.job-0-of-1.lock``), which stay. On a file system without
    locks it does nothing.
    """

    def __init__(self, folder: str, job: int = 0, jobs: int = 1):
        """Take the right, without any wait for the one who has it.

        Args:
            folder: is made.
            job: number of this job, from 0.
            jobs: how many share the folder.

        Raises:
            FolderBusyError: another process has it.
            OutputError: the folder cannot be written to.
        """
        from filelock import BaseFileLock, FileLock, Timeout

        self.folder = folder
        own = self._path(f"job-{job}-of-{jobs}")
        with output_errors(folder):
            os.makedirs(folder, exist_ok=True)
            try:
                with FileLock(os.path.join(folder, _GATE), timeout=_GATE_SECONDS):
                    for path in glob.glob(os.path.join(glob.escape(folder), _LOCK.format("job-*"))):
                        found = re.search(r"-of-(\d+)\.lock$", path)
                        if path != own and found and int(found.group(1)) != jobs:
                            with FileLock(path, timeout=0):
                                pass
                    self._lock: BaseFileLock | None = FileLock(own)
                    self._lock.acquire(timeout=0)
            except Timeout as error:
                raise FolderBusyError(
                    f"{folder!r} is in use: another process is writing into it; wait for its end, stop it, or choose "
                    "another folder"
                ) from error
            except NotImplementedError:  # raised by filelock where the file system has no locks
                self._lock = None

    def release(self, remove: bool = False) -> None:
        """Let others write into the folder.

        Args:
            remove: also remove what the lock costs there, and the folder if nothing else is in it.
        """
        if remove:
            with suppress(OSError):
                for path in glob.glob(os.path.join(glob.escape(self.folder), ".*.lock")):
                    os.unlink(path)
                os.rmdir(self.folder)
        if self._lock is not None:
            self._lock.release()

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, _LOCK.format(name))

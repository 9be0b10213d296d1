"""Atomic writing of files, and locks that allow one run at a time to write to a folder.

A file is written under a temporary name in the same folder, flushed to disk and renamed, so a kill, a full disk or a
power cut leaves the old file or the new one, never a part of it. Disk errors become `OutputError`.
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
_GATE_SECONDS = 60.0  # the gate is held only while a folder is opened

_ROOM = "free some space there and run the command again; earlier files are unchanged"
_PERMISSION = "choose another place, or change its permissions"
_REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the file system or a limit (ulimit -f) allows no file of this size",
    errno.EIO: "the disk or network drive reports an error; choose another place",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: "its folder does not exist (any more)",
    errno.EISDIR: "a folder is in the way",
    errno.ENOTDIR: "a file is in the way of its folder",
}


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Context manager that converts disk errors to an OutputError that names ``path``.

    Raises:
        OutputError: instead of any OSError.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        reason = "; ".join(filter(None, (error.strerror or str(error), _REMEDIES.get(error.errno or 0))))
        raise OutputError(f"{os.fspath(path)!r} cannot be written: {reason}") from error


class atomic_writer:
    """``with atomic_writer(path) as file``: write a binary file atomically and flush it to disk.

    A killed process leaves a file with the suffix ``.tmp``, which the next write of ``path`` reuses. Processes that
    write the same path wait for one another if the file system has locks; otherwise they need different ``writer``
    names. A symbolic link is kept, and an irregular file (a pipe, /dev/stdout) is written directly.

    Raises:
        OutputError: the file cannot be written; the old one is unchanged. Also raised if a library that writes to the
            file hides the error.
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
        os.replace(self._temporary, self._target)  # before closing the file, which releases its lock
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
    """Stores the error of a write, because some libraries do not propagate it."""

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def _open_temporary(path: str) -> _RawFile:
    """Open an empty file, locked until it is closed; waits for another process that holds it."""
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
        file.close()  # it was renamed during the wait


def lock_file(file: IO[Any], wait: bool = True) -> bool:
    """Lock a file until it is closed; returns whether it succeeded, True on a file system without locks.

    Args:
        file: an open file.
        wait: whether to wait for the process that holds it.
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
    """Open a regular file for reading. Others are rejected unopened, because opening could block or have side effects.

    Args:
        path: path of the file.
        pipes: also accept a pipe. A pipe without a writer is empty.

    Raises:
        OSError: the file cannot be opened; ``strerror`` gives the reason.
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
    raise OSError(errno.EINVAL, "not a regular file (a pipe, socket or device)", path)


def sync_folder(folder: str) -> None:
    """Flush the entries of a folder to disk, so that a rename or a new file survives a power cut."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    descriptor = os.open(folder or os.curdir, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_output(path: str | os.PathLike[str], folder: bool, option: str = "--output") -> None:
    """Check that an output file or folder can be written, before any work is done. Nothing is created.

    Args:
        path: path of the output; it and its parent folders may exist.
        folder: whether the output is a folder.
        option: the command line option, for the message.

    Raises:
        InputError: the path is blocked, or permission is missing.
    """
    path = os.fspath(path)
    shown = path if len(path) <= 200 else f"{path[:200]}..."
    wanted, kind = f"{option} {shown!r}", "folder" if folder else "file"
    try:
        if not path or "\0" in path:
            raise InputError(f"{wanted} is not a path; name a {kind}")
        if os.path.exists(path) and os.path.isdir(path) != folder:
            raise InputError(f"{wanted} is a {'file' if folder else 'folder'}; name a {kind} instead")
        existing = os.path.abspath(path)
        if not folder:
            existing = os.path.dirname(existing)
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(path)  # raises if the name is too long
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
    except OSError as error:
        raise InputError(f"{wanted} cannot be written: {error.strerror}") from error
    if not os.path.isdir(existing):
        raise InputError(f"{wanted} cannot be written: {existing!r} is not a folder; choose another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{wanted} cannot be written: no permission to write into {existing!r}; choose another place")


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically, see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text in UTF-8 with unchanged line ends, see `atomic_writer`."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any, writer: str = "", indent: int | None = 1) -> None:
    """Write a json file; keys keep their order.

    Args:
        path: the file.
        value: json value; numbers must be finite.
        writer: see `atomic_writer`.
        indent: spaces per level; None for a single line.

    Raises:
        ValueError: a number is NaN or infinite.
        OutputError: see `atomic_writer`.
    """
    data = json.dumps(value, indent=indent, allow_nan=False).encode("ascii") + b"\n"
    with atomic_writer(path, writer) as file:
        file.write(data)


def write_picture(path: str | os.PathLike[str], picture: Any, kind: str, **options: Any) -> None:
    """Write a picture.

    Args:
        path: the file.
        picture: a Pillow image, or an array (H, W, 3) uint8.
        kind: "PNG" or "JPEG".
        options: options of Pillow's ``save``.
    """
    from PIL import Image

    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    write_bytes(path, buffer.getvalue())


class LineFile:
    """Appends whole lines to a new or existing file. An incomplete last line, left by a kill, is removed."""

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
        """Append lines (without line breaks) and flush them to disk: all or none.

        Raises:
            OutputError: no line was added.
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
    """Call `os.write` until all data is written."""
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]


class FolderLock:
    """Lock for writing to a folder, held until `release` or the end of the process.

    Several jobs of one split (``job`` of ``jobs``) may hold it together; others are excluded. It leaves hidden files in
    the folder (``.gate.lock``, ``.job-0-of-1.lock``). On a file system without locks it does nothing.
    """

    def __init__(self, folder: str, job: int = 0, jobs: int = 1):
        """Acquire the lock without waiting.

        Args:
            folder: folder to lock; created if missing.
            job: number of this job, from 0.
            jobs: number of jobs that share the folder.

        Raises:
            FolderBusyError: another process holds the lock.
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
                    f"{folder!r} is in use: another process is writing to it; wait until it ends, stop it, or choose "
                    "another folder"
                ) from error
            except NotImplementedError:  # raised by filelock if the file system has no locks
                self._lock = None

    def release(self, remove: bool = False) -> None:
        """Release the lock.

        Args:
            remove: also remove the lock files, and the folder if it is empty then.
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

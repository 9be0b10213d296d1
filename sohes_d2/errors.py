"""Errors that users can fix; the message is one line with the file, the location and a fix."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class SOHESError(Exception):
    """An error that the user can fix; commands print it in one line and exit with 1 or a documented code."""


class InputError(SOHESError, ValueError):
    """An input file, folder or argument that cannot be used."""


class ConfigError(SOHESError, ValueError):
    """A config file or override that cannot be used."""


class WeightsError(SOHESError, ValueError):
    """A weights file that cannot be read or does not match the model."""


class CorruptFileError(InputError):
    """A file that was damaged after it was written."""


class RecordError(InputError):
    """A record, mask or field of a label file that cannot be used; ``reason`` is a short category for counting."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


REPLACE_IMAGE = "Replace the file or take it off the list."


class ImageReadError(InputError):
    """A file that cannot be read as an image.

    Attributes:
        reason: what is wrong with it (without memory addresses or times, since it is written to label files).
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str = REPLACE_IMAGE):
        """
        Args:
            path: the file.
            reason: see the class.
            remedy: how to fix it.
        """
        super().__init__(os.fspath(path), reason, remedy)
        self.reason = reason

    def __str__(self) -> str:
        path, reason, remedy = self.args
        return f"cannot read the image {path!r}: {reason}. {remedy}"


class FolderBusyError(InputError):
    """A folder that another process is writing to."""


class OutputError(SOHESError, OSError):
    """A file that cannot be written (disk full, no permission). The message names the file and a fix."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean A, B?`` with the names of ``known`` most similar to ``name``, or "" if there are none."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f" Did you mean {', '.join(near)}?" if near else ""

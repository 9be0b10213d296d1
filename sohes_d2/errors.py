"""Errors that users can act on: one line with the file, the place and the remedy."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class SOHESError(Exception):
    """Something a user can mend; the tools print it in a line and end with exit code 1 or the one they document."""


class InputError(SOHESError, ValueError):
    """A file, a folder or an argument from outside that cannot be used as it is."""


class ConfigError(SOHESError, ValueError):
    """A config file or an override that cannot be used as it is."""


class WeightsError(SOHESError, ValueError):
    """A weights file that cannot be read, or does not fit the model."""


class CorruptFileError(InputError):
    """A file that was written whole, once, and is damaged now."""


class RecordError(InputError):
    """A record, mask or field of a label file that cannot be used; ``reason`` says in a few words why, for counting."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


REPLACE_IMAGE = "Replace the file or take it off the list."


class ImageReadError(InputError):
    """A file that cannot be read as an image.

    Attributes:
        reason: what is wrong with it (no memory addresses or times, so that it can be written to label files).
    """

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str = REPLACE_IMAGE):
        """
        Args:
            path: the file.
            reason: see the class.
            remedy: what the user can do.
        """
        super().__init__(os.fspath(path), reason, remedy)
        self.reason = reason

    def __str__(self) -> str:
        path, reason, remedy = self.args
        return f"cannot read the image {path!r}: {reason}. {remedy}"


class FolderBusyError(InputError):
    """A folder that another process is writing into."""


class OutputError(SOHESError, OSError):
    """A file that cannot be written: a full disk, no permission. The message names it and the remedy."""


def near_matches(name: str, known: Iterable[str]) -> str:
    """`` Did you mean A, B?`` with the nearest of ``known``, or "" where none is near."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f" Did you mean {', '.join(near)}?" if near else ""

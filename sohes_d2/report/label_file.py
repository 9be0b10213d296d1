"""Label files of a report, with distinguishable names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..labels import reader


class ReportError(InputError):
    """The page cannot be made; the message says why and what to do."""


@dataclass
class LabelFile(reader.LabelFile):
    """A label file, and how many of its folders its name tells (``folders``)."""

    folders: int = 0

    @property
    def name(self) -> str:
        """The file's name, with as many of its folders as ``folders`` says."""
        parts = Path(self.path).parts
        return Path(*parts[-1 - self.folders :]).as_posix()


def read_label_file(path: str | Path, results_allowed: bool = False) -> LabelFile:
    """Read a COCO data set, or with ``results_allowed`` a COCO result list.

    Raises:
        InputError: the file cannot be read, is no json, or is none of these.
    """
    file = LabelFile.read(path, results_allowed=results_allowed)
    if not file.images and not file.is_result_list:
        raise ReportError(f"{path} has no images, so there is nothing to show")
    if len(file.categories) == 1:  # a single class, such as our "entity", says nothing of a mask
        file.categories = {}
    return file


def named_apart(files: Sequence[LabelFile]) -> list[LabelFile]:
    """The same files, with names that differ where their paths do: "a/labels.json" and "b/labels.json"."""
    longest = max(len(Path(file.path).parts) for file in files)
    for folders in range(longest):
        named = [replace(file, folders=min(folders, len(Path(file.path).parts) - 1)) for file in files]
        if len({file.name for file in named}) == len(files):
            return named
    return list(files)

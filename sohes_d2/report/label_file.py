"""Label files of a report, with distinguishable names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..labels import reader
from ..labels.schema import Annotation


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

    def of(self, image_id: Any) -> list[Annotation]:
        """Annotations of an image; empty where it has none."""
        return list(self.by_image.get(image_id, ()))


def read_label_file(path: str | Path, results_allowed: bool = False) -> LabelFile:
    """Read a COCO data set, or with ``results_allowed`` a COCO result list.

    Raises:
        InputError: the file cannot be read, is no json, or is none of these.
    """
    found = reader.read_label_file(path, results_allowed=results_allowed)
    file = LabelFile(**{field.name: getattr(found, field.name) for field in fields(found)})
    if not file.images and not file.is_result_list:
        raise ReportError(f"{path} has no images, so there is nothing to show")
    # A single class, such as our "entity", says nothing of a mask.
    return replace(file, categories=file.categories if len(file.categories) > 1 else {})


def named_apart(files: Sequence[LabelFile]) -> list[LabelFile]:
    """The same files, with names that differ where their paths do: "a/labels.json" and "b/labels.json"."""
    longest = max(len(Path(file.path).parts) for file in files)
    for folders in range(longest):
        named = [replace(file, folders=min(folders, len(Path(file.path).parts) - 1)) for file in files]
        if len({file.name for file in named}) == len(files):
            return named
    return list(files)

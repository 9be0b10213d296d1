"""Matching of the images of two label files by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from ..errors import InputError
from .reader import LabelFile
from .schema import Id


def last_part(name: str) -> str:
    """The base name, with the separators of any system."""
    return PurePosixPath(name.replace("\\", "/")).name


PARTS: dict[str, Callable[[str], str]] = {"name": str, "basename": last_part}
DESCRIPTIONS = {"id": "image id", "name": "file name", "basename": "last part of the file name"}


def match_images(
    file: LabelFile, other: LabelFile, parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Id, Id | None], str]:
    """Map image ids of a label file to those of the same images in another, or None; and the key: "id" or one of PARTS.

    Ids are used only if a file has no names, such as a result list, since every tool counts its images from 1.

    Args:
        file, other: the files.
        parts: parts of names to compare, of PARTS: the first, unless a later one matches more and is unique in both. A
            single one is insisted on, and none leaves the ids.

    Raises:
        InputError: the first part is not unique in a file.
    """
    named = all(any("file_name" in image for image in side.images.values()) for side in (file, other))
    if not parts or (len(parts) > 1 and not named):
        return {i: i if i in other.by_image else None for i in file.by_image}, "id"
    best: tuple[int, dict[Id, Id | None], str] = (-1, {}, parts[0])
    for part in parts:
        try:
            mine, theirs = (_ids_by_name(side, part) for side in (file, other))
        except InputError:
            if part == parts[0]:
                raise
            continue
        count = len(mine.keys() & theirs.keys())
        if count > best[0]:  # ties: prefer full names
            best = count, {i: theirs.get(name) for name, i in mine.items()}, part
    return {i: best[1].get(i) for i in file.by_image}, best[2]


def _ids_by_name(file: LabelFile, part: str) -> dict[str, Id]:
    named = [(PARTS[part](image["file_name"]), i) for i, image in file.images.items() if "file_name" in image]
    name, count = next(iter(Counter(name for name, _ in named).most_common(1)), ("", 0))
    if count > 1:
        raise InputError(
            f"{file.path}: {name!r} occurs twice as {DESCRIPTIONS[part]}; repair the names, or match by id"
        )
    return dict(named)

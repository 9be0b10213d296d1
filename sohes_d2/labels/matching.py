"""Matching of the images of two label files by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from ..errors import InputError
from .reader import LabelFile
from .schema import Id


def last_part(name: str) -> str:
    """Base name of a path with POSIX or Windows separators."""
    return PurePosixPath(name.replace("\\", "/")).name


PARTS: dict[str, Callable[[str], str]] = {"name": str, "basename": last_part}
DESCRIPTIONS = {"id": "image id", "name": "file name", "basename": "last part of the file name"}


def match_images(
    file: LabelFile, other: LabelFile, parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Id, Id | None], str]:
    """Match images of two label files: ids of ``file`` -> ids of ``other`` or None, and the key: "id" or one of PARTS.

    Ids are used only if a file has no names, such as a result list, since every tool counts images from 1.

    Args:
        file, other: the files.
        parts: keys of PARTS, in order of preference; a later one is used if it matches more images and is unique in
            both files. A single key is always used; an empty sequence matches by id.

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

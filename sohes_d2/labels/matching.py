"""Matching of the images of two label files by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from .reader import LabelFile
from .schema import Id


class RepeatedNameError(ValueError):
    """A file has a name twice, so it cannot be matched."""


def last_part(name: str) -> str:
    """The base name, with the separators of any system."""
    return PurePosixPath(name.replace("\\", "/")).name


PARTS: dict[str, Callable[[str], str]] = {"name": str, "basename": last_part}


def match_by_name(
    names: Mapping[Any, str], others: Mapping[Any, str], parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Hashable, Any], str]:
    """Map image ids to the ids of images with the same name in another file, or None.

    Args:
        names: image id -> file name.
        others: the same for the other file.
        parts: keys of PARTS to compare: the first, unless a later one matches more images and is unique in both.

    Returns:
        The ids, and the part used.

    Raises:
        RepeatedNameError: the first part is not unique in a file.
    """
    best: tuple[int, dict[Hashable, Any], str] = (-1, {}, parts[0])
    for part in parts:
        mine, theirs = ({i: PARTS[part](name) for i, name in side.items()} for side in (names, others))
        repeated = [name for side in (mine, theirs) for name, count in Counter(side.values()).items() if count > 1]
        if repeated and part == parts[0]:
            raise RepeatedNameError(f"{repeated[0]!r} occurs twice")
        if repeated:
            continue
        ids = {name: i for i, name in theirs.items()}
        found = {i: ids.get(name) for i, name in mine.items()}
        count = sum(other is not None for other in found.values())
        if count > best[0]:  # ties: prefer full names
            best = count, found, part
    return best[1], best[2]


def match_images(
    file: LabelFile, other: LabelFile, parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Id, Id | None], str]:
    """Map image ids of a label file to those of the same images in another, or None; and the key: "id" or one of PARTS.

    Ids are used only if a file has no names, such as a result list, since every tool counts its images from 1.

    Args:
        file, other: the files.
        parts: keys of PARTS to try; a single one is mandatory, and none means ids.

    Raises:
        RepeatedNameError: see `match_by_name`.
    """
    mine, theirs = (
        {i: image["file_name"] for i, image in side.images.items() if "file_name" in image} for side in (file, other)
    )
    if len(parts) == 1 or (parts and mine and theirs):
        found, part = match_by_name(mine, theirs, parts)
        return {i: found.get(i) for i in file.by_image}, part
    return {i: i if i in other.by_image else None for i in file.by_image}, "id"

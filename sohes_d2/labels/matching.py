"""Matching of the images of two label files by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any


class RepeatedNameError(ValueError):
    """A file has a name twice, which says nothing then; ``name`` is an example."""

    def __init__(self, name: str):
        super().__init__(f"{name!r} occurs twice")
        self.name = name


def last_part(name: str) -> str:
    """The name without its folders, whichever system's separators it has."""
    return PurePosixPath(name.replace("\\", "/")).name


PARTS: dict[str, Callable[[str], str]] = {"name": str, "basename": last_part}


def match_by_name(
    names: Mapping[Hashable, str], others: Mapping[Hashable, str], parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Hashable, Any], str]:
    """Image id -> id of the image of the same name in another file, or None.

    Args:
        names: image id -> file name.
        others: likewise of the other file.
        parts: what of a name to compare, of PARTS: the first, unless a later one finds more and is unique in both.

    Returns:
        The ids, and the part that found them.

    Raises:
        RepeatedNameError: the first part is not unique in a file.
    """
    best: tuple[int, dict[Hashable, Any], str] = (-1, {}, parts[0])
    for part in parts:
        mine, theirs = ({i: PARTS[part](name) for i, name in side.items()} for side in (names, others))
        repeated = [name for side in (mine, theirs) for name, count in Counter(side.values()).items() if count > 1]
        if repeated and part == parts[0]:
            raise RepeatedNameError(repeated[0])
        if repeated:
            continue
        ids = {name: i for i, name in theirs.items()}
        found = {i: ids.get(name) for i, name in mine.items()}
        count = sum(other is not None for other in found.values())
        if count > best[0]:  # as many by their last parts: full names say more
            best = count, found, part
    return best[1], best[2]

"""Output file names derived from image names: unique and free of path separators."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_LONGEST = 100


def file_stem(file_name: str, taken: set[str]) -> str:
    """A unique output name without suffix for an image; it is added to ``taken``.

    Folders become part of the name; characters other than letters, digits, dots, dashes and underscores become "_", and
    the name neither starts nor ends with a dot.

    Args:
        file_name: file name of the image.
        taken: lower-case names used so far, since some file systems do not distinguish A.png from a.png.
    """
    name = re.sub(r"[^\w.-]+", "_", _SUFFIX.sub("", file_name)).strip("._-")[:_LONGEST] or "image"
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.lower())
    return candidate

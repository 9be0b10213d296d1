"""Output file names derived from image names: unique and free of path separators."""

from __future__ import annotations

import re

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")
_LONGEST = 100


def file_stem(file_name: str, taken: set[str]) -> str:
    """A name without suffix for what is made for an image; it is entered in ``taken``, and differs from all in it.

    Folders of the image's name become part of it; whatever is not a letter, digit, dot, dash or underscore becomes
    "_", and it neither begins nor ends with a dot.

    Args:
        file_name: of the image.
        taken: lower-case names given so far, since some file systems do not tell A.png from a.png.
    """
    name = re.sub(r"[^\w.-]+", "_", _SUFFIX.sub("", file_name)).strip("._-")[:_LONGEST] or "image"
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.lower())
    return candidate

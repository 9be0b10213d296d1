"""Formats of annotation and training tools: one module per format, with `write`, `read`, `IS_FOLDER` and `LOSSES`.

All use `base.Photo`, a forest with the name of its photo. The libraries of the tools are not required.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from ...errors import InputError, near_matches

FORMATS = ("labelstudio", "cvat", "labelme", "yolo", "voc", "fiftyone")  # modules of this folder


def format_module(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        InputError: no such format.
    """
    if name not in FORMATS:
        raise InputError(f"no format {name!r}; choose from {', '.join(FORMATS)}.{near_matches(name, FORMATS)}")
    return importlib.import_module(f".{name}", __package__)

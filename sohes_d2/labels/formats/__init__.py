"""Formats of annotation and training tools: one module per format, with `write`, `read` and `LOSSES`.

All use `Photo`, a forest with the name of its photo; `sohes_d2.labels.formats.coco` converts between `Photo` and label
files of this project. The libraries of the tools are not required.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from ...errors import InputError, near_matches

# Name on the command line -> module.
FORMATS = {
    "labelstudio": "label_studio",
    "cvat": "cvat",
    "labelme": "labelme",
    "yolo": "yolo",
    "voc": "voc",
    "fiftyone": "fiftyone",
}


def format_module(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        InputError: no such format.
    """
    if name not in FORMATS:
        raise InputError(f"no format {name!r}; choose from {', '.join(FORMATS)}.{near_matches(name, FORMATS)}")
    return importlib.import_module(f".{FORMATS[name]}", __package__)

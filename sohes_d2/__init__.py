"""SOHES in Detectron2: self-supervised open-world hierarchical entity segmentation.

>>> import sohes_d2
>>> model = sohes_d2.load("joint")
>>> forest = model("photo.jpg", entities=20)

Importing this package loads neither torch nor Detectron2. It hooks the import of Detectron2 so that the installed
version works with current libraries (see `sohes_d2.compat`). Public names are imported lazily, on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import compat

if TYPE_CHECKING:
    from .config import add_sohes_config
    from .exploration.labeler import PseudoLabeler
    from .inference.models import load
    from .inference.predictor import SOHESPredictor
    from .structures.entity import Entity
    from .structures.forest import Forest

compat.apply()

__version__ = "0.1.0"

__all__ = ["Entity", "Forest", "PseudoLabeler", "SOHESPredictor", "__version__", "add_sohes_config", "load"]

_HOMES = {
    "Entity": "structures.entity",
    "Forest": "structures.forest",
    "PseudoLabeler": "exploration.labeler",
    "SOHESPredictor": "inference.predictor",
    "add_sohes_config": "config",
    "load": "inference.models",
}
_NEED_DETECTRON2 = {"SOHESPredictor", "add_sohes_config"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _NEED_DETECTRON2:
        compat.require()
        for phase in ("modeling", "correction"):  # register the models in Detectron2's registries
            importlib.import_module(f".{phase}", __name__)
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

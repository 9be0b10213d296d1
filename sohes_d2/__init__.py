"""SOHES in Detectron2: self-supervised open-world hierarchical entity segmentation.

Importing this package makes the installed Detectron2 work with today's libraries (see `sohes_d2.compat`).
"""

from . import compat

compat.apply()

from .config import add_sohes_config  # noqa: E402  (Detectron2 can be imported only after compat.apply)

__version__ = "0.1.0"

__all__ = ["__version__", "add_sohes_config"]

"""What comes with the package: configs by name, and weights, so that all phases run without a download.

A backbone is NAME.safetensors; a whole model is a folder NAME with model.safetensors and config.yaml. They are named as
``shipped:NAME``, see `sohes_d2.weights.shipped_files`, and each has a card beside it.
"""

from __future__ import annotations

import os
from typing import Any

from ..config.load import get_config_file, load_config, shipped_configs

__all__ = ["get_config", "get_config_file", "shipped_configs"]


def get_config(name: str | os.PathLike[str]) -> Any:
    """The config of that name or path, with all defaults, not frozen; see `get_config_file`.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    return load_config(os.fspath(name))

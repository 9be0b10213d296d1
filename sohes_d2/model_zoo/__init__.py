"""Shipped weights, and configs by name, so that all phases run without a download.

A backbone is NAME.safetensors; a model is a folder NAME with model.safetensors and config.yaml. They are named
``shipped:NAME``, see `sohes_d2.weights.shipped_files`, and each has a card.
"""

from __future__ import annotations

import os
from typing import Any

from ..config.load import get_config_file, load_config, shipped_configs

__all__ = ["get_config", "get_config_file", "shipped_configs"]


def get_config(name: str | os.PathLike[str]) -> Any:
    """Load a config by name or path, with all defaults, not frozen; see `get_config_file`.

    Raises:
        ConfigError: not found or invalid.
    """
    return load_config(os.fspath(name))

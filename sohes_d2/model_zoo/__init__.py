"""Weights that come with the package, so that all phases run without a download. Each has a card beside it.

A backbone is NAME.safetensors; a whole model is a folder NAME with model.safetensors and config.yaml.
"""

from __future__ import annotations

from pathlib import Path

from ..weights import WeightsError

PREFIX = "shipped:"
BACKBONE = f"{PREFIX}vit_mini8"  # features for phase 1, and a start for phase 2

_FOLDER = Path(__file__).parent


def shipped_files() -> dict[str, Path]:
    """The weights that ``shipped:NAME`` can name, by name."""
    backbones = {path.stem: path for path in _FOLDER.glob("*.safetensors")}
    models = {path.parent.name: path for path in _FOLDER.glob("*/model.safetensors")}
    return backbones | models


def local_path(source: str) -> str:
    """The file that ``shipped:NAME`` stands for; any other source is returned as it is.

    Raises:
        WeightsError: no such weights come with the package.
    """
    if not source.startswith(PREFIX):
        return source
    files = shipped_files()
    try:
        return str(files[source[len(PREFIX) :]])
    except KeyError:
        raise WeightsError(
            f"Weights {source!r} do not come with this package; it has {', '.join(sorted(files))}."
        ) from None

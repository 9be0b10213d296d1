"""What comes with the package: configs by name, and weights, so that all phases run without a download.

A backbone is NAME.safetensors; a whole model is a folder NAME with model.safetensors and config.yaml. They are named as
``shipped:NAME``, see `sohes_d2.weights.shipped_files`, and each has a card beside it.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import ConfigError, near_matches

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def configs_folder() -> str:
    """The folder of the configs: ``sohes_d2/configs`` of an installed package, ``configs`` in a clone."""
    inside = os.path.join(_PACKAGE, "configs")
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(_PACKAGE), "configs")


def shipped_configs() -> dict[str, str]:
    """Paths of the configs that come with the package, by name: relative to configs/, without the suffix."""
    folder = configs_folder()
    found = {}
    for current, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(current, name)
            if name.endswith(".yaml"):
                found[os.path.relpath(path, folder)[: -len(".yaml")].replace(os.sep, "/")] = path
    return dict(sorted(found.items()))


def get_config_file(name: str | os.PathLike[str]) -> str:
    """The path of a config: a file that exists, or one that comes with the package.

    Args:
        name: a path, or a name: ``exploration/joint``, ``exploration/joint.yaml``, or ``joint`` where no other config
            is called so.

    Raises:
        ConfigError: there is neither; the message has the nearest names.
    """
    name = os.fspath(name)
    if os.path.lexists(name):
        return name
    known = shipped_configs()
    wanted = name.replace(os.sep, "/").removeprefix("configs/").removesuffix(".yaml")
    matches = [wanted] if wanted in known else [full for full in known if full.rpartition("/")[2] == wanted]
    if len(matches) > 1:
        raise ConfigError(f"config {name!r} could be {' or '.join(matches)}; give one of them")
    if not matches:
        names = dict.fromkeys([*known, *(full.rpartition("/")[2] for full in known)])
        raise ConfigError(
            f"config file {name!r} does not exist, nor does a config of that name come with the package."
            + near_matches(wanted, names)
        )
    return known[matches[0]]


def get_config(name: str | os.PathLike[str]) -> Any:
    """The config of that name or path, with all defaults, not frozen; see `get_config_file`.

    Raises:
        ConfigError: there is none, or it cannot be used.
    """
    from ..config_file import load_config

    return load_config(os.fspath(name))

"""Where networks run: the device that a config or a user names, or the CPU."""

from __future__ import annotations

import torch

from .errors import ConfigError


def choose_device(configured: str, wanted: str | torch.device | None = None) -> str:
    """The device to run on: ``wanted`` if it is given, else ``configured``, or the CPU where that one is not there.

    Raises:
        ConfigError: no such device, or the wanted one is not there.
    """
    device = str(wanted) if wanted is not None else configured
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is none that torch knows; use cpu, cuda, cuda:1 or mps") from error
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(kind, lambda: True)()
    if there:
        return device
    if wanted is not None:
        raise ConfigError(f"device {device!r} was asked for, but torch sees none here; use cpu")
    return "cpu"

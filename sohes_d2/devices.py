"""Device selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import ConfigError, near_matches

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "mps")


def choose_device(configured: str, wanted: str | torch.device | None = None) -> str:
    """Return ``wanted`` if given, else ``configured``, falling back to the CPU if ``configured`` is not available.

    Args:
        configured: MODEL.DEVICE of a config: "cpu", "cuda", "cuda:1" or "mps".
        wanted: the device requested by the user.

    Raises:
        ConfigError: an unknown device, or ``wanted`` is not available.
    """
    import torch

    device = str(wanted) if wanted is not None else configured
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        near = near_matches(device.partition(":")[0].lower(), KINDS)
        raise ConfigError(f"device {device!r} is not known to torch; use cpu, cuda, cuda:1 or mps.{near}") from error
    available = True
    if parsed.type == "cuda":
        available = torch.cuda.is_available() and (parsed.index or 0) < torch.cuda.device_count()
    elif parsed.type == "mps":
        available = torch.backends.mps.is_available()
    if available:
        return device
    if wanted is not None:
        raise ConfigError(f"device {device!r} is not available to torch; use --device cpu")
    return "cpu"

"""Helpers for feature extractors that are frozen networks: preprocessing, hooks, precision, device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Raised by the hook of :func:`run_until` to leave the forward pass with the captured tensor."""

    def __init__(self, value: Tensor):
        self.value = value


def run_until(model: nn.Module, module: nn.Module, x: Tensor, *, at_input: bool = False) -> Tensor:
    """Run ``model(x)`` until its submodule ``module``: that module's output, or its first input with ``at_input``.

    Later modules are not computed. A hook is registered for the call and always removed.
    """

    def on_input(_: nn.Module, args: tuple) -> None:
        raise _Reached(args[0])

    def on_output(_: nn.Module, args: tuple, output: Tensor) -> None:
        raise _Reached(output)

    handle = module.register_forward_pre_hook(on_input) if at_input else module.register_forward_hook(on_output)
    try:
        model(x)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} never called its {type(module).__name__}: its features cannot be read.")


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze(model: ModuleT, device: torch.device) -> ModuleT:
    """``model`` on ``device`` in evaluation mode, with all parameters frozen."""
    return model.to(device).eval().requires_grad_(False)


def check_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The torch type for a config string.

    Raises:
        ValueError: an unknown name, or float16 on a CPU.
    """
    if dtype not in DTYPES:
        raise ValueError(f"EXPLORATION.FEATURES.DTYPE {dtype!r} is not one of {', '.join(DTYPES)}.")
    if dtype == "float16" and device.type == "cpu":
        raise ValueError("EXPLORATION.FEATURES.DTYPE float16 needs a GPU; on a CPU use float32 or bfloat16.")
    return DTYPES[dtype]


def precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to ``dtype`` on ``device``; does nothing for float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def to_input(
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Images (H, W, 3) uint8 RGB of one size -> normalised input (B, 3, size[0], size[1]) float32 on ``device``.

    The antialiased bicubic resize runs on uint8 on the CPU for all devices, so that they get the same pixels.
    """
    resized = []
    for image in images:
        pixels = torch.tensor(image).permute(2, 0, 1)[None]
        if tuple(pixels.shape[-2:]) != tuple(size):
            pixels = F.interpolate(pixels, size=tuple(size), mode="bicubic", antialias=True)
        resized.append(pixels)
    batch = torch.cat(resized).contiguous().to(device).float()
    center, scale = (torch.tensor(v, device=device).mul(255).view(1, 3, 1, 1) for v in (mean, std))
    return (batch - center) / scale

"""Normalisation of feature maps (B, C, H, W) by name, for any device, number of processes and number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable

from timm.layers import LayerNorm2d
from torch import Tensor, nn

GROUPS = 32  # of group norm, as in its paper


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over all processes on GPUs; on other devices, where PyTorch refuses to synchronise, over each alone.

    With a single process it is plain batch norm anywhere, and its state dict is that of one.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return super().forward(input)
        return super(nn.SyncBatchNorm, self).forward(input)


def _group_norm(channels: int) -> nn.GroupNorm:
    # 32 where the width allows it, else the greatest number of equal groups that 32 can be halved to.
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SyncBN": SyncBatchNorm,
    "BN": nn.BatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm2d,
}


def build_norm(name: str, channels: int) -> nn.Module:
    """The normalisation ``name`` ("SyncBN", "BN", "GN" or "LN") for maps of ``channels`` channels.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"MODEL.VIT_ADAPTER.NORM {name!r} is not one of {', '.join(NORMS)}.")
    return NORMS[name](channels)

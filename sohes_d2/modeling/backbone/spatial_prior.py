"""Spatial prior module of ViT-Adapter: convolutional features of strides 4 to 32, and their normalisation by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from timm.layers import LayerNorm2d
from torch import Tensor, nn

GROUPS = 32  # of group norm, as in its paper


class SyncBatchNorm(nn.SyncBatchNorm):
    """Batch norm over all processes on GPUs; per process on other devices, where PyTorch does not synchronise it.

    With a single process it is plain batch norm on any device. The state dict is that of batch norm.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return super().forward(input)
        return super(nn.SyncBatchNorm, self).forward(input)


def _group_norm(channels: int) -> nn.GroupNorm:
    # 32 groups if the width allows it, else the largest power of 2 that divides the channels.
    return nn.GroupNorm(math.gcd(GROUPS, channels), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "SyncBN": SyncBatchNorm,
    "BN": nn.BatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm2d,
}


def build_norm(name: str, channels: int, key: str = "MODEL.VIT_ADAPTER.NORM") -> nn.Module:
    """The normalisation ``name`` ("SyncBN", "BN", "GN" or "LN", from the config's ``key``) for maps of ``channels``.

    Raises:
        ValueError: an unknown name.
    """
    if name not in NORMS:
        raise ValueError(f"{key} {name!r} is not one of {', '.join(NORMS)}.")
    return NORMS[name](channels)


class SpatialPriorModule(nn.Module):
    """Image -> maps of strides 4, 8, 16, 32 (ViT-Adapter, section 3.2): a ResNet-like stem, then strided convolutions.

    Module names follow the official code.
    """

    def __init__(self, dim: int, *, inplanes: int = 64, norm: str = "SyncBN") -> None:
        """
        Args:
            dim: channels of the maps, those of the ViT.
            inplanes: channels of the stem; the deeper convolutions have 2, 4 and 4 times as many.
            norm: see `build_norm`.
        """
        super().__init__()
        self.stem = nn.Sequential(
            *_conv_norm_relu(3, inplanes, 2, norm),
            *_conv_norm_relu(inplanes, inplanes, 1, norm),
            *_conv_norm_relu(inplanes, inplanes, 1, norm),
            nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
        )
        self.conv2 = nn.Sequential(*_conv_norm_relu(inplanes, 2 * inplanes, 2, norm))
        self.conv3 = nn.Sequential(*_conv_norm_relu(2 * inplanes, 4 * inplanes, 2, norm))
        self.conv4 = nn.Sequential(*_conv_norm_relu(4 * inplanes, 4 * inplanes, 2, norm))
        self.fc1 = nn.Conv2d(inplanes, dim, kernel_size=1)
        self.fc2 = nn.Conv2d(2 * inplanes, dim, kernel_size=1)
        self.fc3 = nn.Conv2d(4 * inplanes, dim, kernel_size=1)
        self.fc4 = nn.Conv2d(4 * inplanes, dim, kernel_size=1)
        self.apply(init_convolution)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W), sides divisible by 32 -> maps (B, C, H / s, W / s) for s = 4, 8, 16, 32."""
        stride4 = self.stem(images)
        stride8 = self.conv2(stride4)
        stride16 = self.conv3(stride8)
        stride32 = self.conv4(stride16)
        return self.fc1(stride4), self.fc2(stride8), self.fc3(stride16), self.fc4(stride32)


def _conv_norm_relu(in_channels: int, out_channels: int, stride: int, norm: str) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False)
    return [convolution, build_norm(norm, out_channels), nn.ReLU(inplace=True)]


def init_convolution(module: nn.Module) -> None:
    """He initialisation by fan-out (the official code's) if ``module`` is a convolution; for ``nn.Module.apply``."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)

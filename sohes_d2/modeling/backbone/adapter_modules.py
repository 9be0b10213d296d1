"""Parts of ViT-Adapter (Chen et al., ICLR 2023): spatial prior (section 3.2), injectors and extractors (section 3.3).

"Patch tokens" (B, N, C) are the ViT's, without class and register tokens. "Spatial tokens" (B, M, C) are the spatial
prior's maps of strides 8, 16 and 32, flattened row by row and concatenated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm2d
from torch import Tensor, nn

from ..deformable_attention import MSDeformAttn, cell_centers
from .vit import checkpointed

GROUPS = 32  # of group norm, as in its paper
_LayerNorm = partial(nn.LayerNorm, eps=1e-6)  # the ViT's


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


@dataclass(frozen=True)
class TokenLayout:
    """Positions of the tokens of one batch in its images.

    Attributes:
        grid: rows and columns of the patch tokens.
        levels: rows and columns of each map among the spatial tokens.
        patch_points: (1, N, 1, 2), centres (x, y) of the patch tokens, each image being [0, 1] x [0, 1].
        spatial_points: (1, M, 1, 2), centres (x, y) of the spatial tokens.
    """

    grid: tuple[int, int]
    levels: tuple[tuple[int, int], ...]
    patch_points: Tensor
    spatial_points: Tensor

    @classmethod
    def of(cls, grid: tuple[int, int], levels: Sequence[tuple[int, int]], like: Tensor) -> TokenLayout:
        """The layout with points on the device and of the dtype of ``like``."""
        spatial_points = torch.cat([cell_centers(shape, like) for shape in levels])
        return cls(grid, tuple(levels), cell_centers(grid, like)[None, :, None], spatial_points[None, :, None])


class DeformableCrossAttention(nn.Module):
    """Deformable attention of queries to feature maps, with a layer norm on both."""

    def __init__(self, dim: int, *, num_levels: int, num_heads: int, num_points: int, ratio: float) -> None:
        super().__init__()
        self.query_norm = _LayerNorm(dim)
        self.feat_norm = _LayerNorm(dim)
        self.attn = MSDeformAttn(dim, n_levels=num_levels, n_heads=num_heads, n_points=num_points, ratio=ratio)

    def attend(self, query: Tensor, points: Tensor, features: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """Queries (B, Q, C) at ``points`` (1, Q, 1, 2) attend to ``features`` (B, S, C) of ``shapes``: (B, Q, C)."""
        return self.attn(self.query_norm(query), points, self.feat_norm(features), shapes)


class Injector(DeformableCrossAttention):
    """Patch tokens attend to the spatial tokens; the result is added, scaled by gamma per channel.

    gamma starts at 0, so that the ViT starts as it was pretrained (equation 1).
    """

    def __init__(self, dim: int, *, num_heads: int, num_points: int, ratio: float) -> None:
        super().__init__(dim, num_levels=3, num_heads=num_heads, num_points=num_points, ratio=ratio)
        self.gamma = nn.Parameter(torch.zeros(dim))

    def forward(self, patches: Tensor, spatial: Tensor, layout: TokenLayout) -> Tensor:
        """Patch tokens (B, N, C) and spatial tokens (B, M, C) -> patch tokens (B, N, C)."""
        return patches + self.gamma * self.attend(patches, layout.patch_points, spatial, layout.levels)


class ConvFFN(nn.Module):
    """Feed-forward network over spatial tokens with a 3x3 depthwise convolution on each of their maps."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        for linear in (self.fc1, self.fc2):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        init_convolution(self.dwconv)

    def forward(self, spatial: Tensor, levels: Sequence[tuple[int, int]]) -> Tensor:
        """(B, M, C) -> (B, M, C)."""
        maps = split_maps(self.fc1(spatial), levels)
        mixed = torch.cat([self.dwconv(level).flatten(2) for level in maps], dim=2)
        return self.fc2(self.act(mixed).transpose(1, 2))


class Extractor(DeformableCrossAttention):
    """Spatial tokens attend to the patch tokens, then pass through a convolutional FFN (equations 2, 3)."""

    def __init__(
        self, dim: int, *, num_heads: int, num_points: int, ratio: float, cffn_ratio: float, drop_path: float
    ) -> None:
        super().__init__(dim, num_levels=1, num_heads=num_heads, num_points=num_points, ratio=ratio)
        self.ffn_norm = _LayerNorm(dim)
        self.ffn = ConvFFN(dim, max(1, int(dim * cffn_ratio)))
        self.drop_path = DropPath(drop_path)

    def forward(self, spatial: Tensor, patches: Tensor, layout: TokenLayout) -> Tensor:
        """Spatial tokens (B, M, C) and patch tokens (B, N, C) -> spatial tokens (B, M, C)."""
        spatial = spatial + self.attend(spatial, layout.spatial_points, patches, [layout.grid])
        return spatial + self.drop_path(self.ffn(self.ffn_norm(spatial), layout.levels))


class InteractionBlock(nn.Module):
    """One stage: an injector, some blocks of the ViT, an extractor; after the last stage more extractors."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        num_points: int,
        deform_ratio: float,
        cffn_ratio: float,
        drop_path: float = 0.0,
        num_extractors: int = 1,
        gradient_checkpointing: bool = False,
    ) -> None:
        """
        Args:
            dim: channels C of all tokens.
            num_heads, num_points, deform_ratio, cffn_ratio, drop_path: see `ViTAdapter`.
            num_extractors: number of consecutive extractors.
            gradient_checkpointing: recompute the injector and the extractors in the backward pass.
        """
        super().__init__()
        attention: dict[str, Any] = {"num_heads": num_heads, "num_points": num_points, "ratio": deform_ratio}
        self.injector = Injector(dim, **attention)
        self.extractors = nn.ModuleList(
            Extractor(dim, **attention, cffn_ratio=cffn_ratio, drop_path=drop_path) for _ in range(num_extractors)
        )
        self.gradient_checkpointing = gradient_checkpointing

    def forward(
        self, tokens: Tensor, spatial: Tensor, layout: TokenLayout, run_blocks: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """
        Args:
            tokens: (B, prefix + N, C), the ViT's sequence; only its patch tokens take part in the interaction.
            spatial: (B, M, C).
            layout: of both.
            run_blocks: the ViT's blocks of this stage, tokens -> tokens.

        Returns:
            tokens and spatial tokens after the stage.
        """
        again = self.gradient_checkpointing and self.training
        prefix = tokens.shape[1] - layout.patch_points.shape[1]
        patches = checkpointed(self.injector, tokens[:, prefix:], spatial, layout, recompute=again)
        tokens = run_blocks(torch.cat([tokens[:, :prefix], patches], dim=1) if prefix else patches)
        for extractor in self.extractors:
            spatial = checkpointed(extractor, spatial, tokens[:, prefix:], layout, recompute=again)
        return tokens, spatial


def split_maps(spatial: Tensor, levels: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Spatial tokens (B, M, C) -> their maps (B, C, H, W), one per level."""
    parts = spatial.transpose(1, 2).split([rows * cols for rows, cols in levels], dim=2)
    # Convolutions would copy strided maps anyway, and again in the backward pass.
    return [part.unflatten(2, shape).contiguous() for part, shape in zip(parts, levels)]

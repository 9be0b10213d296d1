"""Mask2Former's pixel decoder: a deformable transformer over the coarse maps and an FPN for the fine ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Callable

import torch
from fvcore.common.registry import Registry
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm

from .deformable_attention import MSDeformAttn, cell_centers
from .transformer_layers import PositionEmbeddingSine

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Pixel decoders, called with ``(cfg, input_shape)``, the channels and strides of the backbone's maps. Such a module has a
method ``forward_features(features)``; see `MSDeformAttnPixelDecoder` for what it takes and returns.
"""


NUM_MULTI_SCALE_FEATURES = 3  # maps that queries attend to (Mask2Former, section 3.2.2)


def build_pixel_decoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build the decoder that ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names."""
    return PIXEL_DECODER_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)(cfg, input_shape)


@PIXEL_DECODER_REGISTRY.register()
class MSDeformAttnPixelDecoder(nn.Module):
    """The multi-scale deformable attention pixel decoder (Mask2Former, CVPR 2022, section 4.1).

    Parameters are named as in the official implementation, so that ``sem_seg_head.pixel_decoder.*`` of its checkpoints
    load. Under autocast it runs in float32, as in the official implementation.
    """

    @configurable
    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        transformer_nheads: int = 8,
        transformer_dim_feedforward: int = 1024,
        transformer_enc_layers: int = 6,
        transformer_n_points: int = 4,
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        conv_dim: int = 256,
        mask_dim: int = 256,
        norm: str | Callable[[int], nn.Module] | None = "GN",
        common_stride: int = 4,
    ) -> None:
        """
        Args:
            input_shape: channels and stride of each of the backbone's maps.
            transformer_nheads: attention heads.
            transformer_dim_feedforward: hidden channels of the encoder's feed-forward networks.
            transformer_enc_layers: encoder layers.
            transformer_n_points: sampling points per head and level.
            transformer_in_features: input maps of the transformer.
            conv_dim: channels of all maps inside; a multiple of 4 and of ``transformer_nheads``.
            mask_dim: channels of the mask features.
            norm: of the FPN's convolutions, as in Detectron2's ``get_norm``.
            common_stride: stride of the mask features, in pixels of the model's input.
        """
        super().__init__()
        missing = [name for name in transformer_in_features if name not in input_shape]
        if missing:
            raise ValueError(
                f"The transformer's input maps {missing} are not among the backbone's {sorted(input_shape)}; see "
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES and IN_FEATURES."
            )
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)  # fine to coarse
        self.transformer_in_features = [name for name in reversed(by_stride) if name in transformer_in_features]
        finest = min(input_shape[name].stride for name in transformer_in_features)
        self.fpn_in_features = [name for name in by_stride if common_stride <= input_shape[name].stride < finest]
        expected = [common_stride * 2**level for level in range(max(0, round(math.log2(finest / common_stride))))]
        if [input_shape[name].stride for name in self.fpn_in_features] != expected:
            strides = {name: input_shape[name].stride for name in by_stride}
            raise ValueError(
                f"From stride {finest} down to {common_stride}, maps of strides {expected} are needed, got {strides}."
            )
        if len(self.transformer_in_features) + len(self.fpn_in_features) < NUM_MULTI_SCALE_FEATURES:
            raise ValueError(f"Needs at least {NUM_MULTI_SCALE_FEATURES} maps, got {by_stride}.")

        self.input_proj = nn.ModuleList()
        for name in self.transformer_in_features:
            projection = nn.Conv2d(input_shape[name].channels, conv_dim, kernel_size=1)
            nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
            self.input_proj.append(nn.Sequential(projection, nn.GroupNorm(math.gcd(32, conv_dim), conv_dim)))
        self.transformer = MSDeformAttnTransformerEncoderOnly(
            conv_dim,
            num_levels=len(self.transformer_in_features),
            num_layers=transformer_enc_layers,
            dim_feedforward=transformer_dim_feedforward,
            num_heads=transformer_nheads,
            num_points=transformer_n_points,
        )
        self.pe_layer = PositionEmbeddingSine(conv_dim // 2)
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

        bias = norm == ""
        for index, name in enumerate(self.fpn_in_features, start=1):
            lateral = Conv2d(
                input_shape[name].channels, conv_dim, kernel_size=1, bias=bias, norm=get_norm(norm, conv_dim)
            )
            output = Conv2d(
                conv_dim,
                conv_dim,
                kernel_size=3,
                padding=1,
                bias=bias,
                norm=get_norm(norm, conv_dim),
                activation=F.relu,
            )
            weight_init.c2_xavier_fill(lateral)
            weight_init.c2_xavier_fill(output)
            self.add_module(f"adapter_{index}", lateral)
            self.add_module(f"layer_{index}", output)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Constructor arguments from ``cfg.MODEL.SEM_SEG_HEAD``."""
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": input_shape,
            "transformer_nheads": head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS,
            "transformer_dim_feedforward": head.ENC_DIM_FEEDFORWARD,
            "transformer_enc_layers": head.TRANSFORMER_ENC_LAYERS,
            "transformer_n_points": head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS,
            "transformer_in_features": head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES,
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "common_stride": head.COMMON_STRIDE,
        }

    def forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """
        Args:
            features: the backbone's maps by name, (B, channels, H / stride, W / stride).

        Returns:
            ``mask_features`` (B, mask_dim, H / common_stride, W / common_stride); the transformer's coarsest map
            (B, conv_dim, H / 32, W / 32); and the three maps (B, conv_dim, ...) that queries attend to, coarsest first.
        """
        device_type = next(iter(features.values())).device.type
        with torch.autocast(device_type, enabled=False):
            return self._forward_features({name: _at_least_float32(each) for name, each in features.items()})

    def _forward_features(self, features: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        inputs = [features[name] for name in self.transformer_in_features]
        srcs = [projection(x) for projection, x in zip(self.input_proj, inputs)]
        maps = self.transformer(srcs, [self.pe_layer(x) for x in inputs])
        for index in range(len(self.fpn_in_features), 0, -1):  # coarse to fine
            lateral = getattr(self, f"adapter_{index}")(features[self.fpn_in_features[index - 1]])
            coarser = F.interpolate(maps[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            maps.append(getattr(self, f"layer_{index}")(lateral + coarser))
        return self.mask_features(maps[-1]), maps[0], maps[:NUM_MULTI_SCALE_FEATURES]


class MSDeformAttnTransformerEncoderOnly(nn.Module):
    """Deformable transformer encoder (Deformable DETR, section 4.1): each cell of all maps attends to all maps."""

    def __init__(
        self, dim: int, *, num_levels: int, num_layers: int, dim_feedforward: int, num_heads: int, num_points: int
    ) -> None:
        """``num_levels`` maps of ``dim`` channels; the rest as in `MSDeformAttnPixelDecoder`."""
        super().__init__()
        layers = [
            MSDeformAttnTransformerEncoderLayer(dim, dim_feedforward, num_levels, num_heads, num_points)
            for _ in range(num_layers)
        ]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})  # named as in checkpoints
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        # Xavier for matrices, a ring for sampling offsets, N(0, 1) for level embeddings (Deformable DETR, A.3)
        for layer in layers:
            nn.init.xavier_uniform_(layer.linear1.weight)
            nn.init.xavier_uniform_(layer.linear2.weight)
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(self, srcs: Sequence[Tensor], pos_embeds: Sequence[Tensor]) -> list[Tensor]:
        """L maps (B, C, H, W) and their positions (1, C, H, W) -> L maps (B, C, H, W)."""
        shapes = [(src.shape[-2], src.shape[-1]) for src in srcs]
        tokens = _flatten(srcs)
        pos = _flatten([pos + embed[:, None, None] for pos, embed in zip(pos_embeds, self.level_embed)])
        # relative positions are the same on every level
        points = torch.cat([cell_centers(shape, tokens) for shape in shapes])[None, :, None]
        for layer in self.encoder["layers"].children():
            tokens = layer(tokens, pos, points, shapes)
        levels = tokens.split([height * width for height, width in shapes], dim=1)
        return [level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, shapes)]


class MSDeformAttnTransformerEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both residual with post-norm."""

    def __init__(self, dim: int, dim_feedforward: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, dim_feedforward)
        self.linear2 = nn.Linear(dim_feedforward, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(
        self, src: Tensor, pos: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """(B, S, C) tokens and (1, S, C) positions -> (B, S, C); the rest as in :class:`MSDeformAttn`."""
        src = self.norm1(src + self.self_attn(src + pos, reference_points, src, spatial_shapes))
        return self.norm2(src + self.linear2(F.relu(self.linear1(src))))


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, H, W) -> tokens (B, sum(H * W), C)."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()

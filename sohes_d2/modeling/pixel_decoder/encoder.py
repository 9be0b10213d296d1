"""The transformer encoder of the pixel decoder: deformable self-attention over all levels (Deformable DETR, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..deformable_attention import MSDeformAttn


class MSDeformAttnTransformerEncoderLayer(nn.Module):
    """Deformable self-attention and a feed-forward network, both residual with post-norm."""

    def __init__(
        self, d_model: int, d_ffn: int, n_levels: int, n_heads: int, n_points: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_levels, n_heads, n_points)
        self.norm1 = nn.LayerNorm(d_model)
        self.linear1 = nn.Linear(d_model, d_ffn)
        self.linear2 = nn.Linear(d_ffn, d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, S, C) tokens and (B or 1, S, C) positions -> (B, S, C); the rest as in :class:`MSDeformAttn`."""
        attended = self.self_attn(src + pos, reference_points, src, spatial_shapes, padding_mask)
        src = self.norm1(src + self.dropout(attended))
        hidden = self.dropout(F.relu(self.linear1(src)))
        return self.norm2(src + self.dropout(self.linear2(hidden)))


class MSDeformAttnTransformerEncoder(nn.Module):
    """A stack of encoder layers; a separate class because its name in checkpoints is ``transformer.encoder``."""

    def __init__(self, layers: Sequence[MSDeformAttnTransformerEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self,
        src: Tensor,
        pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        padding_mask: Tensor | None = None,
    ) -> Tensor:
        """As :meth:`MSDeformAttnTransformerEncoderLayer.forward`."""
        for layer in self.layers:
            src = layer(src, pos, reference_points, spatial_shapes, padding_mask)
        return src


class MSDeformAttnTransformerEncoderOnly(nn.Module):
    """Converts feature maps of several strides to maps of the same sizes, whose cells have attended to all levels."""

    def __init__(
        self,
        d_model: int = 256,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        dim_feedforward: int = 1024,
        dropout: float = 0.0,
        num_feature_levels: int = 3,
        enc_n_points: int = 4,
    ) -> None:
        """
        Args:
            d_model: channels C of all maps.
            nhead: attention heads.
            num_encoder_layers: number of layers.
            dim_feedforward: hidden channels of the feed-forward networks.
            dropout: probability, of all parts of a layer.
            num_feature_levels: L.
            enc_n_points: sampling points per head and level.
        """
        super().__init__()
        self.encoder = MSDeformAttnTransformerEncoder(
            [
                MSDeformAttnTransformerEncoderLayer(
                    d_model, dim_feedforward, num_feature_levels, nhead, enc_n_points, dropout
                )
                for _ in range(num_encoder_layers)
            ]
        )
        self.level_embed = nn.Parameter(torch.empty(num_feature_levels, d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for matrices, a ring for sampling offsets, N(0, 1) for level embeddings (Deformable DETR, A.3)."""
        for layer in self.encoder.layers:
            assert isinstance(layer, MSDeformAttnTransformerEncoderLayer)
            nn.init.xavier_uniform_(layer.linear1.weight)
            nn.init.xavier_uniform_(layer.linear2.weight)
            layer.self_attn.reset_parameters()
        nn.init.normal_(self.level_embed)

    def forward(
        self, srcs: Sequence[Tensor], pos_embeds: Sequence[Tensor], masks: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """
        Args:
            srcs: L maps (B, C, H, W).
            pos_embeds: their positions (B or 1, C, H, W).
            masks: (B, H, W) bool each, True where a cell is padding, right of and below the image; None: no padding.

        Returns:
            L maps (B, C, H, W).
        """
        spatial_shapes = [(src.shape[-2], src.shape[-1]) for src in srcs]
        tokens = _flatten(srcs)
        pos = _flatten([pos + embed[:, None, None] for pos, embed in zip(pos_embeds, self.level_embed)])
        if masks is None:
            padding_mask = None
            valid_ratios = tokens.new_ones((1, len(srcs), 2))
        else:
            padding_mask = torch.cat([mask.flatten(1) for mask in masks], dim=1)
            valid_ratios = torch.stack([_valid_ratio(mask) for mask in masks], dim=1).to(tokens.dtype)
        reference_points = get_reference_points(spatial_shapes, valid_ratios)
        tokens = self.encoder(tokens, pos, reference_points, spatial_shapes, padding_mask)
        levels = tokens.split([height * width for height, width in spatial_shapes], dim=1)
        return [level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, spatial_shapes)]


def get_reference_points(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """The centre of every cell of every level, on each level (Deformable DETR, section 4.1).

    Args:
        spatial_shapes: the (H, W) of L levels.
        valid_ratios: (B, L, 2), the share (x, y) in (0, 1] of each level that is image, not padding.

    Returns:
        (B, sum(H * W), L, 2): (x, y) in [0, 1] of the padded levels.
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = (torch.arange(height, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5) / height
        x = (torch.arange(width, dtype=valid_ratios.dtype, device=valid_ratios.device) + 0.5) / width
        grid = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)
        centres.append(grid.view(1, -1, 2) / valid_ratios[:, level, None])
    # Relative positions in the image are the same on every level; the share of padding may differ.
    return torch.cat(centres, dim=1)[:, :, None] * valid_ratios[:, None]


def _valid_ratio(mask: Tensor) -> Tensor:
    """Share (x, y) of a (B, H, W) padding mask's sides that is not padding: (B, 2)."""
    return torch.stack([(~mask[:, 0, :]).float().mean(dim=1), (~mask[:, :, 0]).float().mean(dim=1)], dim=-1)


def _flatten(maps: Sequence[Tensor]) -> Tensor:
    """Maps (B, C, H, W) -> tokens (B, sum(H * W), C)."""
    return torch.cat([each.flatten(2).transpose(1, 2) for each in maps], dim=1)

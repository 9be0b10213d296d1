"""Position encoding, and the modules of a layer of Mask2Former's decoder (Cheng et al., CVPR 2022, section 3.2).

Parameters have the official implementation's names, so that its checkpoints load. Tensors are batch first: (B, N, C).
There is no dropout, as in the paper.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TEMPERATURE = 10000.0  # of the position encoding: approximate ratio of the longest to the shortest wavelength


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of (y, x) for feature maps (DETR, ECCV 2020, appendix A.4). It has no parameters.

    Half of the channels encode y, the other half x; within each half, sine and cosine of one frequency alternate.
    Positions run from 0 to 2 pi over the map, independent of its size.
    """

    def __init__(self, num_pos_feats: int) -> None:
        """
        Args:
            num_pos_feats: channels per axis, even; the encoding has twice as many.
        """
        super().__init__()
        if num_pos_feats < 2 or num_pos_feats % 2 != 0:
            raise ValueError(f"num_pos_feats must be even and positive, got {num_pos_feats}.")
        self.num_pos_feats = num_pos_feats

    def forward(self, x: Tensor) -> Tensor:
        """Encode the positions of the cells of maps.

        Args:
            x: (B, C, H, W), of which only the size, device and type (float64 or not) matter.

        Returns:
            (1, 2 * num_pos_feats, H, W) float32, or float64 like ``x``.
        """
        height, width = x.shape[-2:]
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        rows, columns = (
            self._encode(torch.arange(1, side + 1, dtype=dtype, device=x.device)) for side in (height, width)
        )
        encoded = torch.cat([rows[:, None].expand(-1, width, -1), columns.expand(height, -1, -1)], dim=-1)
        return encoded.permute(2, 0, 1)[None]

    def _encode(self, positions: Tensor) -> Tensor:
        """(N,) positions counted from 1 -> (N, num_pos_feats)."""
        positions = positions / (positions[-1:] + 1e-6) * (2 * math.pi)
        exponents = torch.arange(0, self.num_pos_feats, 2, dtype=positions.dtype, device=positions.device)
        angles = positions[:, None] / TEMPERATURE ** (exponents / self.num_pos_feats)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)


class MultiheadAttention(nn.Module):
    """Like `torch.nn.MultiheadAttention`, with equal parameters and results, but with one mask for all heads.

    PyTorch's module needs a mask per head, which takes 8 times the memory: 1 GB for 1000 queries, two images, a 128x128
    feature map and fp32.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        """
        Args:
            dim: channels C of queries, keys and values.
            num_heads: must divide C.

        Raises:
            ValueError: ``num_heads`` does not divide C.
        """
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"{dim} channels cannot be split into {num_heads} attention heads: change MODEL.MASK_FORMER.NHEADS or "
                "MODEL.MASK_FORMER.HIDDEN_DIM so that the first divides the second"
            )
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))  # of query, key and value
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)  # as one matrix, which gives smaller values than three would
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Compute the attention.

        Args:
            query: (B, Q, C).
            key, value: (B, N, C).
            allowed: bool, broadcastable to (B, heads, Q, N); True where a query may attend, at least one key each.
                None: everywhere.

        Returns:
            (B, Q, C).
        """
        queries, keys, values = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3))
        )
        attended = F.scaled_dot_product_attention(queries, keys, values, allowed)  # (B, heads, Q, C / heads)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class ResidualLayer(nn.Module, ABC):
    """Residual layer with a layer norm on the sum (post-norm, as in the paper) or on the update's input (pre-norm)."""

    def __init__(self, dim: int, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm = nn.LayerNorm(dim)

    @abstractmethod
    def update(self, x: Tensor, *args: Any) -> Tensor:
        """The residual update, added to x (B, N, C)."""

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        """Apply the layer to x (B, N, C); the other arguments go to `update`."""
        if self.pre_norm:
            return x + self.update(self.norm(x), *args)
        return self.norm(x + self.update(x, *args))


class SelfAttentionLayer(ResidualLayer):
    """Self-attention of the queries."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__(dim, pre_norm)
        self.self_attn = MultiheadAttention(dim, num_heads)

    def update(self, x: Tensor, positions: Tensor) -> Tensor:
        """Args: queries x (B, Q, C) and their positional embeddings, broadcastable to (B, Q, C)."""
        placed = x + positions
        return self.self_attn(placed, placed, x)


class CrossAttentionLayer(ResidualLayer):
    """Cross-attention of queries to image features, masked per query."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__(dim, pre_norm)
        self.multihead_attn = MultiheadAttention(dim, num_heads)

    def update(self, x: Tensor, positions: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None) -> Tensor:
        """Attend to the features.

        Args:
            x: (B, Q, C), queries.
            positions: their positional embeddings, broadcastable to (B, Q, C).
            keys: (B, N, C), features with positional embeddings.
            values: (B, N, C), features.
            allowed: see `MultiheadAttention`.
        """
        return self.multihead_attn(x + positions, keys, values, allowed)


class FFNLayer(ResidualLayer):
    """Feed-forward network with one hidden layer, applied to each query."""

    def __init__(self, dim: int, hidden_dim: int, pre_norm: bool = False) -> None:
        super().__init__(dim, pre_norm)
        self.linear1 = nn.Linear(dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, dim)
        nn.init.xavier_uniform_(self.linear1.weight)
        nn.init.xavier_uniform_(self.linear2.weight)

    def update(self, x: Tensor) -> Tensor:
        """Args: x (B, N, C)."""
        return self.linear2(F.relu(self.linear1(x)))


class MLP(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *dims: int) -> None:
        """
        Args:
            dims: channels of the input, of every hidden layer, and of the output.
        """
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in zip(dims[:-1], dims[1:]))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims[0]) -> (..., dims[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)

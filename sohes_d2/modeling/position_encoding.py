"""Sine position encoding of feature maps, used by the pixel decoder and the transformer decoder."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class PositionEmbeddingSine(nn.Module):
    """Sine encoding of (y, x) for feature maps (DETR, ECCV 2020, appendix A.4). It has no parameters.

    Half of the channels encode y, the other half x; within each half, sine and cosine of one frequency alternate.
    """

    def __init__(
        self, num_pos_feats: int = 64, temperature: float = 10000.0, normalize: bool = True, scale: float = 2 * math.pi
    ) -> None:
        """
        Args:
            num_pos_feats: channels per axis, even; the encoding has twice as many.
            temperature: approximate ratio of the longest to the shortest wavelength.
            normalize: True: positions run from 0 to ``scale`` over the map, independent of its size; False: they are
                in cells.
            scale: the end of the normalized range, in radians.
        """
        super().__init__()
        if num_pos_feats < 2 or num_pos_feats % 2 != 0:
            raise ValueError(f"num_pos_feats must be even and positive, got {num_pos_feats}.")
        self.num_pos_feats = num_pos_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the positions of the cells of ``x``.

        Args:
            x: (B, C, H, W), of which only the size, device and type (float64 or not) matter.
            mask: (B, H, W) bool, True where a cell is padding, to the right of and below the image.

        Returns:
            (B, 2 * num_pos_feats, H, W) float32, or float64 like ``x``; without a mask, a view that repeats over B.
        """
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        batch, _, height, width = x.shape
        if mask is None:
            valid = torch.ones((1, height, width), dtype=dtype, device=x.device)
        else:
            valid = (~mask).to(dtype)
        encoded = torch.cat([self._encode(valid.cumsum(dim=axis), axis) for axis in (1, 2)], dim=-1)
        return encoded.permute(0, 3, 1, 2).expand(batch, -1, -1, -1)

    def _encode(self, positions: Tensor, axis: int) -> Tensor:
        """(B, H, W) positions counted from 1 along ``axis`` -> (B, H, W, num_pos_feats)."""
        if self.normalize:
            last = positions.narrow(axis, positions.shape[axis] - 1, 1)
            positions = positions / (last + 1e-6) * self.scale
        exponents = torch.arange(0, self.num_pos_feats, 2, dtype=positions.dtype, device=positions.device)
        angles = positions[..., None] / self.temperature ** (exponents / self.num_pos_feats)
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    def extra_repr(self) -> str:
        return (
            f"num_pos_feats={self.num_pos_feats}, temperature={self.temperature:g}, "
            f"normalize={self.normalize}, scale={self.scale:.4f}"
        )

"""Multi-scale deformable attention (Deformable DETR, ICLR 2021, section 4.1) in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .deformable_sampling import sample_by_gather, sample_by_grid, sample_by_rows


def multi_scale_deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    method: str = "auto",
) -> Tensor:
    """Weighted sums of bilinearly sampled values (Deformable DETR, equation 3, without its projections).

    Args:
        value: (B, S, M, D), M heads of D channels; the cells of L levels in turn, row by row, S = sum(H * W).
        spatial_shapes: the (H, W) of each level.
        locations: (B, Q, M, L, P, 2), sampling points (x, y); (0, 0) is the top left corner of a level's top left cell
            and (1, 1) the bottom right one of its last cell. Cells outside of the level count as zero.
        weights: (B, Q, M, L, P), attention weight of each sample.
        method: "grid", "rows" (CPU) or "gather", see :mod:`.deformable_sampling`; "auto": the fastest that supports
            the device and dtype.

    Returns:
        (B, Q, M * D), heads concatenated.
    """
    if method == "auto":
        method = _fastest_method(value, weights)
    return _METHODS[method](value, spatial_shapes, locations, weights)


_METHODS = {"grid": sample_by_grid, "rows": sample_by_rows, "gather": sample_by_gather}


def _fastest_method(value: Tensor, weights: Tensor) -> str:
    if value.device.type == "mps":
        return "gather"
    # The sparse matrix has four entries per weight, counted in 32 bits.
    small = max(4 * weights.numel(), 2 * value.numel()) < 2**31
    if value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64) and small:
        return "rows"
    return "grid"


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections (Deformable DETR, equation 3).

    Parameters are named as in Deformable DETR, Mask2Former and ViT-Adapter, so that their checkpoints load.
    The sampling runs in float32 (float64 for a float64 module), also under autocast: float16 is too coarse for
    locations.

    Attributes:
        sampling: the ``method`` of `multi_scale_deformable_attention`. Not all methods can be traced, so that exporting
            needs "grid".
    """

    def __init__(
        self, d_model: int = 256, n_levels: int = 4, n_heads: int = 8, n_points: int = 4, ratio: float = 1.0
    ) -> None:
        """
        Args:
            d_model: channels C of queries, input and output.
            n_levels: L, feature maps that are sampled.
            n_heads: M.
            n_points: P, samples per head and level.
            ratio: channels of the values over ``d_model`` (ViT-Adapter, appendix; 1 in Deformable DETR).
        """
        super().__init__()
        value_dim = int(d_model * ratio)
        if value_dim < n_heads or value_dim % n_heads != 0:
            raise ValueError(
                f"The {value_dim} value channels (d_model {d_model} x ratio {ratio}) do not split into {n_heads} heads."
            )
        self.n_levels = n_levels
        self.n_heads = n_heads
        self.n_points = n_points
        self.sampling = "auto"
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_levels * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_levels * n_points)
        self.value_proj = nn.Linear(d_model, value_dim)
        self.output_proj = nn.Linear(value_dim, d_model)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as a ring: direction 2 pi m / M for head m, k cells for point k (Deformable DETR, A.3)."""
        angles = torch.arange(self.n_heads) * (2.0 * math.pi / self.n_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)  # onto the border of a square
        distances = torch.arange(1.0, self.n_points + 1.0)
        ring = directions[:, None, None, :] * distances[None, None, :, None]  # (M, 1, P, 2)
        with torch.no_grad():
            self.sampling_offsets.weight.zero_()
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.n_levels, -1, -1).flatten())
            self.attention_weights.weight.zero_()
            self.attention_weights.bias.zero_()
            for projection in (self.value_proj, self.output_proj):
                nn.init.xavier_uniform_(projection.weight)
                projection.bias.zero_()

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        input_flatten: Tensor,
        input_spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Each query samples ``n_points`` locations per head and level around its reference points.

        Args:
            query: (B, Q, C).
            reference_points: (B, Q, L, 2), (x, y) in [0, 1] of each level; B and L may be 1 for "the same for all".
            input_flatten: (B, S, C), the L feature maps, flattened row by row and joined.
            input_spatial_shapes: the (H, W) of each level, sum(H * W) = S.

        Returns:
            (B, Q, C).

        Raises:
            ValueError: the sizes do not fit together.
        """
        batch, queries, _ = query.shape
        length = input_flatten.shape[1]
        if len(input_spatial_shapes) != self.n_levels:
            raise ValueError(f"Got {len(input_spatial_shapes)} spatial shapes for {self.n_levels} levels.")
        if sum(height * width for height, width in input_spatial_shapes) != length:
            raise ValueError(f"Spatial shapes {list(input_spatial_shapes)} do not add up to {length} cells.")
        if reference_points.shape[-1] != 2:
            raise ValueError(f"Reference points must be (x, y), got shape {tuple(reference_points.shape)}.")

        value = self.value_proj(input_flatten)
        offsets = self.sampling_offsets(query).view(batch, queries, self.n_heads, -1)
        weights = self.attention_weights(query).view(batch, queries, self.n_heads, -1).softmax(dim=-1)

        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        per_point = (self.n_levels, self.n_points)
        with torch.autocast(value.device.type, enabled=False):
            # Offsets are in cells of their level. Levels, points and axes are one flat axis during the computation.
            widths_heights = [(width, height) for height, width in input_spatial_shapes for _ in range(self.n_points)]
            sizes = torch.tensor(widths_heights, dtype=dtype, device=value.device).flatten()
            centres = reference_points.to(dtype)[:, :, :, None].expand(-1, -1, *per_point, -1).flatten(2)
            output = multi_scale_deformable_attention(
                value.to(dtype).view(batch, length, self.n_heads, -1),
                input_spatial_shapes,
                (centres[:, :, None] + offsets.to(dtype) / sizes).unflatten(-1, (*per_point, 2)),
                weights.to(dtype).unflatten(-1, per_point),
                self.sampling,
            )
        return self.output_proj(output.to(value.dtype))


def cell_centers(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Centres (x, y) in [0, 1] of the cells of a map with ``shape`` (H, W), row by row: (H * W, 2)."""
    y, x = ((torch.arange(cells, device=like.device, dtype=like.dtype) + 0.5) / cells for cells in shape)
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).flatten(0, 1)

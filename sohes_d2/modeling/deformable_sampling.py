"""The sampling of deformable attention: three implementations with equal results.

`sample_by_grid` is the default, for every device. `sample_by_rows` is up to five times faster on CPUs.
`sample_by_gather` is slow, but runs where ``grid_sample`` has no gradient, as on Apple's GPUs with many versions of
torch. All take and return what `deformable_attention.multi_scale_deformable_attention` describes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def sample_by_grid(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """One ``grid_sample`` per level, with heads in the batch dimension."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # (L, B * M, Q, P, 2)
    samples = []
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    for level, (height, width), grid in zip(levels, spatial_shapes, grids):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        samples.append(F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    output = (torch.cat(samples, dim=-1) * weights).sum(dim=-1)  # (B * M, D, Q)
    return output.view(batch, heads * channels, queries).transpose(1, 2)


def sample_by_gather(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """One gather per level and corner, which has a gradient on every device."""
    batch, _, heads, channels = value.shape
    queries, points = locations.shape[1], locations.shape[4]
    output = value.new_zeros(batch, heads, queries, channels)
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    for index, (level, (height, width)) in enumerate(zip(levels, spatial_shapes)):
        cells = level.transpose(1, 2)  # (B, M, H * W, D)
        x, y = locations[:, :, :, index].transpose(1, 2).flatten(2, 3).unbind(dim=-1)  # (B, M, Q * P)
        x, y = x * width - 0.5, y * height - 0.5
        left, top = x.detach().floor(), y.detach().floor()
        level_weights = weights[:, :, :, index].transpose(1, 2).flatten(2, 3)
        for row, near_row in ((top, 1 + top - y), (top + 1, y - top)):
            for col, near_col in ((left, 1 + left - x), (left + 1, x - left)):
                inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
                cell = torch.where(inside, row * width + col, 0).long()
                samples = cells.gather(2, cell[..., None].expand(-1, -1, -1, channels))
                share = torch.where(inside, near_row * near_col, 0) * level_weights
                output = output + (samples * share[..., None]).unflatten(2, (queries, points)).sum(dim=3)
    return output.transpose(1, 2).flatten(2)


def sample_by_rows(
    value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """A sparse matrix, 4 * L * P entries per query and head, times the table of all cells. CPU only."""
    return _RowSampling.apply(value, locations, weights, tuple(spatial_shapes))


class _RowSampling(torch.autograd.Function):
    """The output is A V: row (b, q, m) of A holds the weights of the four cells around each of its samples.

    V are the levels with a border of zeros, so that samples need no bounds check: those beyond the border are moved
    onto it. Each product uses the fastest library: ``embedding_bag`` for A V, SciPy for the gradient A^T G of V, and
    torch.sparse for the gradient of A, which is G V^T at A's entries.
    Samples are processed in the layout (L, P * N), long rows of one level, and transposed before and after.
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, spatial_shapes: tuple[tuple[int, int], ...]
    ) -> Tensor:
        batch, queries, heads, levels, points, _ = locations.shape
        total = batch * queries * heads
        table = _add_borders(value, spatial_shapes)
        cells = table.shape[1]

        xy = locations.reshape(total, -1).t().contiguous().view(levels, points, 2, total)
        x, y = (xy[:, :, axis].reshape(levels, -1) for axis in (0, 1))
        left, x_share, x_inside = _split(x, [width for _, width in spatial_shapes])
        top, y_share, y_inside = _split(y, [height for height, _ in spatial_shapes])
        widths = torch.tensor([width + 2 for _, width in spatial_shapes], dtype=torch.int32)
        starts = np.cumsum([0] + [(height + 2) * (width + 2) for height, width in spatial_shapes[:-1]])
        first = torch.from_numpy(starts).int() + widths + 1  # the cell of row 0, column 0
        corner = top.mul_(widths[:, None]).add_(left).add_(first[:, None]).mul_(heads).view(levels, points, total)
        head = torch.arange(heads, dtype=torch.int32)
        image = torch.arange(batch, dtype=torch.int32) * (cells * heads)
        corner += (image[:, None, None] + head).expand(batch, queries, heads).reshape(total)
        rows = torch.empty(levels, points, 4, total, dtype=torch.int32)
        for index, step in enumerate((0 * widths, 0 * widths + 1, widths, widths + 1)):
            torch.add(corner, step[:, None, None] * heads, out=rows[:, :, index])
        rows = rows.view(-1, total).t().contiguous()

        weights = weights.reshape(total, -1).t().contiguous().view(levels, -1)
        entries = _entries(x_share, y_share, weights, total)
        output = F.embedding_bag(rows, table.view(-1, table.shape[-1]), mode="sum", per_sample_weights=entries)
        ctx.save_for_backward(table, rows, entries, x_share, y_share, x_inside & y_inside, weights)
        ctx.spatial_shapes = spatial_shapes
        ctx.sizes = (batch, queries, heads, levels, points)
        return output.view(batch, queries, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        table, rows, entries, x_share, y_share, inside, weights = ctx.saved_tensors
        batch, queries, heads, levels, points = ctx.sizes
        total, per_row = rows.shape
        cells = table.view(-1, table.shape[-1])
        grad = grad.reshape(total, -1).contiguous()
        row_starts = torch.arange(0, total * per_row + 1, per_row, dtype=torch.int32)

        grad_value = grad_locations = grad_weights = None
        if ctx.needs_input_grad[0]:
            matrix = sparse.csr_matrix(
                (entries.view(-1).numpy(), rows.view(-1).numpy(), row_starts.numpy()), shape=(total, len(cells))
            )
            grad_table = torch.from_numpy(matrix.T @ grad.numpy())
            grad_value = _remove_borders(grad_table.view(table.shape), ctx.spatial_shapes)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
                pattern = torch.sparse_csr_tensor(
                    row_starts,
                    rows.view(-1),
                    torch.zeros_like(entries).view(-1),
                    size=(total, len(cells)),
                    check_invariants=False,
                )
            grad_entries = torch.sparse.sampled_addmm(pattern, grad, cells.t(), beta=0.0).values()
            grad_entries = grad_entries.view(total, -1).t().contiguous().view(levels, points, 4, total)
            top_left, top_right, low_left, low_right = (grad_entries[:, :, i].reshape(levels, -1) for i in range(4))
            top_step, low_step = top_right.sub_(top_left), low_right.sub_(low_left)
            top = torch.addcmul(top_left, top_step, x_share)
            y_step = torch.addcmul(low_left, low_step, x_share).sub_(top)
            grad_weights = torch.addcmul(top, y_step, y_share)
            sizes = torch.tensor(ctx.spatial_shapes, dtype=grad.dtype)
            grad_x = top_step.lerp_(low_step, y_share).mul_(weights).mul_(inside).mul_(sizes[:, 1:])
            grad_y = y_step.mul_(weights).mul_(inside).mul_(sizes[:, :1])
            grad_locations = torch.stack([each.view(levels, points, total) for each in (grad_x, grad_y)], dim=2)
            grad_locations = grad_locations.view(-1, total).t().reshape(batch, queries, heads, levels, points, 2)
            grad_weights = grad_weights.view(-1, total).t().reshape(batch, queries, heads, levels, points)
        return grad_value, grad_locations, grad_weights, None


def _split(positions: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(L, ...) positions in [0, 1] along an axis -> the cell before, the weight of the next one, and which are inside.

    Cells run from -1 to the level's size - 1, so that both neighbours are cells of the level or of its border.
    """
    size = torch.tensor(sizes, dtype=positions.dtype)[:, None]
    positions = torch.addcmul(torch.tensor(-0.5, dtype=positions.dtype), positions, size)
    inside = (positions > -1) & (positions < size)
    positions = torch.minimum(positions.clamp_(min=-1), size)
    # NaN positions keep a NaN share, but need a valid row.
    before = torch.minimum(positions.floor(), size - 1).nan_to_num_(nan=0.0)
    return before.int(), positions.sub_(before), inside


def _entries(x_share: Tensor, y_share: Tensor, weights: Tensor, total: int) -> Tensor:
    """Entries of the sparse matrix: (L, P * N) shares and weights -> (N, L * P * 4)."""
    entries = weights.new_empty(len(weights), weights.shape[1] // total, 4, total)
    low = weights * y_share
    for index, row in ((0, weights - low), (2, low)):
        right = row * x_share
        entries[:, :, index] = row.sub_(right).view(entries[:, :, 0].shape)
        entries[:, :, index + 1] = right.view(entries[:, :, 0].shape)
    return entries.view(-1, total).t().contiguous()


def _add_borders(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, S, M, D) -> (B, S', M, D), a border of one zero cell around every level."""
    batch = len(value)
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    padded = [
        F.pad(level.reshape(batch, height, width, -1), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
        for level, (height, width) in zip(levels, spatial_shapes)
    ]
    return torch.cat(padded, dim=1).view(batch, -1, *value.shape[2:])


def _remove_borders(table: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """The inverse of :func:`_add_borders`."""
    levels = table.split([(height + 2) * (width + 2) for height, width in spatial_shapes], dim=1)
    inner = [
        level.unflatten(1, (height + 2, width + 2))[:, 1:-1, 1:-1].flatten(1, 2)
        for level, (height, width) in zip(levels, spatial_shapes)
    ]
    return torch.cat(inner, dim=1)

"""Mask losses look at points, not at whole maps (PointRend, Kirillov et al., CVPR 2020; Mask2Former, section 3.3).

Points are (x, y), x first as ``grid_sample`` has it, in [0, 1] x [0, 1] over the whole map. Being relative, they let
predictions and labels of different resolutions be compared without either being resized.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

# Of the float copies that are made at once of maps of other types. What a CPU's cache holds is sampled three times as
# fast there; other devices rather have few large pieces of work.
CPU_CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024 * 1024


def random_points(num_sets: int, num_points: int, device: torch.device) -> torch.Tensor:
    """(num_sets, num_points, 2) float32 points, uniform in [0, 1). All randomness of matcher and losses is here."""
    return torch.rand(num_sets, num_points, 2, device=device)


def sample_points(maps: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Bilinear values of maps at points; beyond the outermost pixel centres they fade to 0 over half a pixel.

    Args:
        maps: (N, H, W), bool or any float type.
        points: (N, P, 2), or (1, P, 2) for the same points in every map.

    Returns:
        (N, P) float32.
    """
    grid = (2 * points - 1).unsqueeze(2).expand(len(maps), -1, -1, -1)
    if not len(maps):
        # not every device samples from nothing
        return maps.new_zeros((0, points.shape[1]), dtype=torch.float32)
    # Labels come as bool, a quarter of the memory: only a few at a time are made float.
    chunk_bytes = CPU_CHUNK_BYTES if maps.device.type == "cpu" else CHUNK_BYTES
    count = len(maps) if maps.dtype == torch.float32 else max(1, chunk_bytes // (4 * maps[0].numel()))
    values = [
        F.grid_sample(some_maps.float().unsqueeze(1), some_points, mode="bilinear", align_corners=False)
        for some_maps, some_points in zip(maps.split(count), grid.split(count))
    ]
    return torch.cat(values).flatten(1)


@torch.no_grad()
def uncertain_points(
    logits: torch.Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> torch.Tensor:
    """Points where the masks are uncertain, and some random ones (PointRend, section 3.1, training).

    Of ``num_points * oversample_ratio`` random points those with logits nearest to 0 are kept. The logits are sampled
    first and judged then: half-way between -1 and 1 a mask is undecided, though neither pixel is.

    Args:
        logits: (N, H, W) of masks.
        num_points: P, of the result.
        oversample_ratio: at least 1.
        importance_sample_ratio: share of P, in [0, 1], that is chosen so; the others are random.

    Returns:
        (N, P, 2), in no particular order.
    """
    num_candidates = int(num_points * oversample_ratio)
    num_chosen = int(num_points * importance_sample_ratio)
    candidates = random_points(len(logits), num_candidates, logits.device)
    certainty = sample_points(logits, candidates).abs()
    # the order does not matter to sums over points, and sorting takes half of the time
    chosen = certainty.topk(num_chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    if num_chosen < num_points:
        points = torch.cat([points, random_points(len(logits), num_points - num_chosen, logits.device)], dim=1)
    return points

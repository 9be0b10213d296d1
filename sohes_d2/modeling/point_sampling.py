"""Point sampling for mask losses (PointRend, Kirillov et al., CVPR 2020; Mask2Former, section 3.3).

Points are (x, y), x first as in ``grid_sample``, in [0, 1] x [0, 1] over the whole map. Since they are relative,
predictions and labels of different resolutions are compared without resizing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Size of the float copies of maps of other dtypes. On CPUs, copies that fit into the cache are sampled three times as
# fast; other devices are faster with few large chunks.
CPU_CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_BYTES = 64 * 1024 * 1024


def random_points(num_sets: int, num_points: int, device: torch.device) -> Tensor:
    """(num_sets, num_points, 2) float32 points, uniform in [0, 1); the only randomness of matcher and losses."""
    return torch.rand(num_sets, num_points, 2, device=device)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values of maps at points; the maps are padded with zeros, so a value at the border is halved.

    Args:
        maps: (N, H, W), bool or any float type.
        points: (N, P, 2), or (1, P, 2) for the same points in every map.

    Returns:
        (N, P) float32.
    """
    grid = (2 * points - 1).unsqueeze(2).expand(len(maps), -1, -1, -1)
    if not len(maps):
        # some devices cannot sample from an empty tensor
        return maps.new_zeros((0, points.shape[1]), dtype=torch.float32)
    # Labels are bool, a quarter of float32's memory, so only a few at a time are converted.
    chunk_bytes = CPU_CHUNK_BYTES if maps.device.type == "cpu" else CHUNK_BYTES
    count = len(maps) if maps.dtype == torch.float32 else max(1, chunk_bytes // (4 * maps[0].numel()))
    values = [
        F.grid_sample(some_maps.float().unsqueeze(1), some_points, mode="bilinear", align_corners=False)
        for some_maps, some_points in zip(maps.split(count), grid.split(count))
    ]
    return torch.cat(values).flatten(1)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, num_points: int, oversample_ratio: float, importance_sample_ratio: float
) -> Tensor:
    """Points where the masks are uncertain, and some random ones (PointRend, section 3.1, training).

    Of ``num_points * oversample_ratio`` random points those with logits nearest to 0 are kept. The uncertainty is
    computed from the sampled logits: half-way between pixels of logits -1 and 1 a mask is uncertain, though not at
    these pixels.

    Args:
        logits: (N, H, W) of masks.
        num_points: P, number of points returned per mask.
        oversample_ratio: at least 1.
        importance_sample_ratio: share of P, in [0, 1], chosen by uncertainty; the others are random.

    Returns:
        (N, P, 2), in no particular order.
    """
    num_candidates = int(num_points * oversample_ratio)
    num_chosen = int(num_points * importance_sample_ratio)
    candidates = random_points(len(logits), num_candidates, logits.device)
    certainty = sample_points(logits, candidates).abs()
    # the order does not matter for sums over points, and sorting would take half of the time
    chosen = certainty.topk(num_chosen, dim=1, largest=False, sorted=False).indices
    points = candidates.gather(1, chosen.unsqueeze(2).expand(-1, -1, 2))
    if num_chosen < num_points:
        points = torch.cat([points, random_points(len(logits), num_points - num_chosen, logits.device)], dim=1)
    return points

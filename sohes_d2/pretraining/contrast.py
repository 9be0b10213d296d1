"""Dense contrastive loss: the same point in two crops is a positive pair, other points and photos are negatives.

Dense contrastive learning (Wang et al., CVPR 2021; VICRegL, Bardes et al., NeurIPS 2022) with a small offset between
the points of a pair: patches that often occur side by side likely belong together (Isola et al., Learning visual groups
from co-occurrences in space and time, 2015). Every pair of points is a sample, so few photos suffice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def common_places(boxes: Tensor, points: int) -> Tensor:
    """Sample random points visible in both global views of a photo.

    Args:
        boxes: (B, 2, 4), the overlapping views as (y0, x0, y1, x1) in pixels of the photo.
        points: number of points per photo.

    Returns:
        (B, points, 2) as (y, x) in the photo.
    """
    low = boxes[..., :2].amax(dim=1)
    high = boxes[..., 2:].amin(dim=1)
    random = torch.rand(len(boxes), points, 2, device=boxes.device)
    return low[:, None] + random * (high - low)[:, None]


def moved_apart(places: Tensor, boxes: Tensor, patch_share: float, sigma: float) -> Tensor:
    """Move ``places`` (B, P, 2) by Gaussian noise of std ``sigma`` patches, clipped to the views ``boxes`` (B, 4).

    ``patch_share`` is the side of a patch divided by the side of the view.
    """
    if sigma <= 0:
        return places
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    step = torch.randn_like(places) * (high - low) * (patch_share * sigma)
    return torch.minimum(torch.maximum(places + step, low), high)


def features_at(maps: Tensor, places: Tensor, boxes: Tensor, flips: Tensor) -> Tensor:
    """Sample features of views bilinearly at points of the photo.

    Args:
        maps: (B, C, rows, cols), one view per photo.
        places: (B, P, 2) as (y, x) in the photo.
        boxes: (B, 4) of the views, (y0, x0, y1, x1) in the photo.
        flips: (B,) bool, whether the view is mirrored left to right.

    Returns:
        (B, P, C).
    """
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    within = 2 * (places - low) / (high - low) - 1  # -1..1 over the view
    y, x = within.unbind(-1)
    x = torch.where(flips[:, None], -x, x)
    grid = torch.stack([x, y], dim=-1)[:, :, None]
    found = F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)

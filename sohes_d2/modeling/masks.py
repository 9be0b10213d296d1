"""Predicted masks at full size: their scores, as in Mask2Former, and the refinement of their outlines.

A mask's score is the probability that its query is an entity, times the mean probability of its pixels inside (the
confidence of the mask). The first factor is an upper bound of the score. Masks are resized in chunks.

The decoder predicts masks at a quarter of the input's size; the photo has the finer outlines, to which refinement moves
those of the masks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

# The linear models are fitted on a map of half the size, an eighth of the work. On synthetic scenes that costs a
# quarter of the gain of refinement (AR@100 21.8 without, 23.1 with, 23.6 at full size).
_STEP = 2
_MIN_AGREEMENT = 0.5  # IoU before and after; below it there is no edge nearby, and the mask is not changed


def entity_probabilities(logits: Tensor, masks: Tensor) -> Tensor:
    """(Q,) float32 probabilities that queries are entities; 0 for those with empty masks.

    Args:
        logits: (Q, K + 1), the last for "no entity".
        masks: (Q, h, w) logits.
    """
    entity = 1 - logits.float().softmax(-1)[:, -1]
    # interpolation cannot create positive logits where none exist
    return entity.masked_fill(masks.flatten(1).amax(1) <= 0, 0)


def full_size_logits(
    masks: Tensor,
    padded_size: tuple[int, int],
    image_size: tuple[int, int],
    output_size: tuple[int, int],
    chunk_bytes: int,
) -> Iterator[Tensor]:
    """Resize masks from the decoder's resolution to an image's, in chunks.

    Args:
        masks: (N, h, w) logits over the padded image.
        padded_size: (H, W) of the model's input.
        image_size: (H, W) of the image in it, from its top left corner.
        output_size: (H, W) of the result.
        chunk_bytes: memory of the working copies that exist at once (at least one mask's).

    Yields:
        Chunks (n, *output_size) of float32 logits, N masks in total. They may share memory with ``masks``.
    """
    if not len(masks):
        return
    pixels = max(padded_size[0] * padded_size[1], output_size[0] * output_size[1])
    # padded and full size exist at the same time, and so do logits and probabilities
    for chunk in masks.split(max(1, chunk_bytes // (4 * 3 * pixels))):
        chunk = resize(chunk.float(), padded_size)[:, : image_size[0], : image_size[1]]
        chunk = resize(chunk, output_size)
        yield chunk


def measure(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Binarize (n, H, W) mask logits and compute their confidence.

    Returns:
        inside: (n, H, W) bool.
        areas: (n,) int32, in pixels.
        mask_confidence: (n,) float32, the mean probability of the pixels inside; 0 for an empty mask.
    """
    inside = logits > 0
    ones = inside.view(torch.uint8)  # on CPUs, counting and multiplying is several times faster than with bool
    areas = ones.flatten(1).sum(1, dtype=torch.int32)
    # mask by mask: one mask of a large photo fits into a CPU's cache
    totals = [mask.sigmoid().mul_(one).sum() for mask, one in zip(logits, ones)]
    return inside, areas, torch.stack(totals) / areas.clamp(min=1)


def resize(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, h, w) to (N, *size), bilinear."""
    if tuple(masks.shape[-2:]) == tuple(size):
        return masks
    return F.interpolate(masks[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def refine_masks(
    masks: Tensor, photo: Tensor, radius: int, epsilon: float, chunk_bytes: int = 256 * 1024 * 1024
) -> Iterator[Tensor]:
    """Fast guided filter with a colour guide (He and Sun, arXiv:1505.00996), some masks at a time.

    In every square a mask is fitted by a linear function of the colour; the average of these fits has the edges of the
    photo. Phase 1's `guided` refiner does the same for clustered masks, on the host.

    Args:
        masks: (N, H, W) bool.
        photo: (3, H, W), or larger at its right and bottom, in [0, 255].
        radius: of the squares, in pixels, at least 2; roughly the error of the outlines.
        epsilon: ridge on the colours' covariance, in squared units of colours in [0, 1]; smaller follows fainter edges.
        chunk_bytes: memory of the working copies that exist at once (at least one mask's).

    Yields:
        Chunks (n, H, W) float32, N masks in total: positive inside the refined mask, about +-0.5 far from its outline.
        A mask whose IoU with the refined mask is under 0.5 is not changed.
    """
    height, width = masks.shape[-2:]
    guide = photo[:, :height, :width].float() / 255
    small = _shrink(guide)
    mean = _Means((small.shape[-2], small.shape[-1]), max(1, round(radius / _STEP)), guide.device)
    mean_colour = mean(small)
    inverse = _inverse_covariance(small, mean_colour, mean, epsilon)
    for chunk in masks.split(max(1, chunk_bytes // (4 * 8 * height * width))):
        inside = chunk.float()
        target = _shrink(inside)[:, None]
        means = mean(torch.cat([target * small, target], dim=1))
        covariance = means[:, :3] - mean_colour * means[:, 3:]
        # an einsum would multiply the small matrices one by one
        terms = [inverse[:, k] * covariance[:, k, None] for k in range(3)]
        slope = terms[0] + terms[1] + terms[2]
        offset = means[:, 3:] - (slope * mean_colour).sum(1, keepdim=True)
        model = mean(torch.cat([slope, offset], dim=1))
        model = F.interpolate(model, size=(height, width), mode="bilinear", align_corners=False)
        refined = (model[:, :3] * guide).sum(1) + model[:, 3] - 0.5
        after = refined > 0
        common, either = (after & chunk).sum((1, 2)), (after | chunk).sum((1, 2))
        yield torch.where((common >= _MIN_AGREEMENT * either)[:, None, None], refined, inside - 0.5)


def _shrink(values: Tensor) -> Tensor:
    """(N, H, W) to (N, H / _STEP, W / _STEP), rounded up."""
    size = [-(-side // _STEP) for side in values.shape[-2:]]
    return F.interpolate(values[None], size=size, mode="area")[0]


class _Means:
    """Means over squares of 2 radius + 1 pixels, restricted to the image.

    Computed with band matrices, which for sides of up to a few hundred pixels is faster than pooling or running sums.
    """

    def __init__(self, size: tuple[int, int], radius: int, device: torch.device):
        self.rows, self.columns = (_band(side, radius, device) for side in size)

    def __call__(self, values: Tensor) -> Tensor:
        return self.rows @ (values @ self.columns.T)


def _band(side: int, radius: int, device: torch.device) -> Tensor:
    """(side, side): each row averages the positions within ``radius`` of it."""
    place = torch.arange(side, device=device)
    near = ((place[:, None] - place[None]).abs() <= radius).float()
    return near / near.sum(1, keepdim=True)


def _inverse_covariance(guide: Tensor, mean_colour: Tensor, mean: _Means, epsilon: float) -> Tensor:
    """(3, 3, H, W): the inverse of the colours' covariance in each square, with ``epsilon`` on its diagonal."""
    covariance = mean(guide[:, None] * guide[None]) - mean_colour[:, None] * mean_colour[None]
    ridge = epsilon * torch.eye(3, device=guide.device)[:, :, None, None]
    return torch.linalg.inv((covariance + ridge).permute(2, 3, 0, 1)).permute(2, 3, 0, 1)

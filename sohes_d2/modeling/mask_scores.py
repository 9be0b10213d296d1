"""Scores of predicted masks as in Mask2Former, computed at full size in chunks.

A mask's score is the probability that its query is an entity, times the mean probability of its pixels inside (the
confidence of the mask). The first factor is an upper bound of the score.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F


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

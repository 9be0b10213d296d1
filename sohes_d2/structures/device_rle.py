"""RLE encoding of masks on their device (such as a GPU), in chunks."""

from __future__ import annotations

import numpy as np
import torch

from .masks import RLE, encode_masks, encode_runs

# Bounds the working memory: about 4 copies of this size, and 16 bytes per run end.
CHUNK_BYTES = 16 * 1024 * 1024


def encode_tensor(masks: torch.Tensor) -> list[RLE]:
    """RLEs of (N, H, W) masks, with the faster encoder for their device; see `encode_on_device`."""
    # On the CPU, pycocotools is faster than torch.
    return encode_masks(masks) if masks.device.type == "cpu" else encode_on_device(masks)


def encode_on_device(masks: torch.Tensor, chunk_bytes: int = CHUNK_BYTES) -> list[RLE]:
    """Encode masks to compressed RLEs.

    Args:
        masks: (N, H, W), any type and device; non-zero is inside.
        chunk_bytes: memory of the masks per chunk, at one byte per pixel (at least one mask).

    Returns:
        N RLEs, equal to those of `sohes_d2.structures.masks.encode_masks`.

    Raises:
        ValueError: not (N, H, W), or without pixels.
    """
    if masks.ndim != 3 or (len(masks) and not masks[0].numel()):
        raise ValueError(f"masks must be (N, H, W) with H and W of at least 1, got shape {tuple(masks.shape)}")
    if not len(masks):
        return []
    height, width = masks.shape[1:]
    rles: list[RLE] = []
    for chunk in masks.split(max(1, chunk_bytes // (height * width))):
        # run lengths go down the columns
        pixels = (chunk != 0).transpose(1, 2).reshape(len(chunk), -1)
        which, where = (pixels[:, 1:] != pixels[:, :-1]).nonzero(as_tuple=True)
        changes = torch.bincount(which, minlength=len(chunk)).cumsum(0).cpu().numpy()
        positions = np.split((where + 1).cpu().numpy(), changes[:-1])
        for starts_inside, edges in zip(pixels[:, 0].tolist(), positions):
            runs = np.diff(edges, prepend=0, append=height * width).tolist()
            counts = [0, *runs] if starts_inside else runs
            rles.append(encode_runs(counts, (height, width)))
    return rles

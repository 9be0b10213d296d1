"""RLEs of tensors, encoded on their device, and as a field of Detectron2's `Instances`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .masks import RLE, decode_mask, decode_masks, encode_masks, encode_runs

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


class RLEMasks:
    """N masks of one image as compressed RLEs, decoded one by one on access.

    1,000 bool masks of a 1500x2250 photo take 3.4 GB, their RLEs a few MB. Detectron2 can use this object as
    ``pred_masks`` like a tensor, mask by mask (its evaluators) or all at once (its `Visualizer`).

    Attributes:
        rles: the RLEs, all of ``image_size``.
        image_size: (H, W) in pixels.
    """

    def __init__(self, rles: Sequence[RLE], image_size: tuple[int, int]):
        self.rles = list(rles)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        for rle in self.rles:
            if tuple(rle["size"]) != self.image_size:
                raise ValueError(f"an RLE of size {tuple(rle['size'])} among masks of {self.image_size}")

    def __len__(self) -> int:
        return len(self.rles)

    def __repr__(self) -> str:
        return f"RLEMasks({len(self)} masks, image_size={self.image_size})"

    def __getitem__(self, item: int | slice | torch.Tensor | np.ndarray | Sequence[int]) -> torch.Tensor | RLEMasks:
        """An (H, W) bool tensor for an int; `RLEMasks` for a slice, indices or a bool mask of length N.

        `Instances` passes a slice for a single index.
        """
        if isinstance(item, (int, np.integer)):
            return torch.from_numpy(decode_mask(self.rles[item]))
        if isinstance(item, torch.Tensor):
            item = item.cpu().numpy()
        return RLEMasks([self.rles[k] for k in np.arange(len(self))[item]], self.image_size)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return (torch.from_numpy(decode_mask(rle)) for rle in self.rles)

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        """(N, H, W) bool, all masks decoded."""
        masks = decode_masks(self.rles) if self.rles else np.zeros((0, *self.image_size), bool)
        return masks if dtype is None else masks.astype(dtype)

    def to(self, *args: object, **kwargs: object) -> RLEMasks:
        """Return itself: RLEs are always on the CPU. Called by `Instances.to`."""
        return self

    @staticmethod
    def cat(parts: Sequence[RLEMasks]) -> RLEMasks:
        """Concatenate masks of equal size."""
        return RLEMasks([rle for part in parts for rle in part.rles], parts[0].image_size)

"""Fields of Detectron2's `Instances`: masks as RLEs, encoded on their device, and the ancestors among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Union

import numpy as np
import torch

from .masks import RLE, decode_mask, decode_masks, encode_masks, encode_runs

# A bool mask (N,), indices (K,), a slice, or one index.
Index = Union[torch.Tensor, np.ndarray, Sequence[int], slice, int]

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

    def __getitem__(self, item: Index) -> torch.Tensor | RLEMasks:
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

    def to(self, *args: Any, **kwargs: Any) -> RLEMasks:
        """Return itself: RLEs are always on the CPU. Called by `Instances.to`."""
        return self

    @staticmethod
    def cat(parts: Sequence[RLEMasks]) -> RLEMasks:
        """Concatenate masks of equal size."""
        return RLEMasks([rle for part in parts for rle in part.rles], parts[0].image_size)


class AncestorMatrix:
    """Ancestor relation of the N masks of one image, the target of the ancestor head (SOHES, section 3.2).

    It is the transitive closure of "parent of". Labels store it instead of parents because it stays valid when
    intermediate masks are dropped.

    Attributes:
        tensor: (N, N) bool, ``tensor[i, j]``: mask i is a proper ancestor of mask j.
    """

    def __init__(self, tensor: torch.Tensor):
        """
        Raises:
            TypeError: not a bool tensor.
            ValueError: not (N, N).
        """
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.bool:
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise TypeError(f"ancestors must be a bool tensor, got {found}")
        if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1]:
            raise ValueError(f"ancestors must be (N, N), got shape {tuple(tensor.shape)}")
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __repr__(self) -> str:
        return f"AncestorMatrix({len(self)} masks, {int(self.tensor.sum())} pairs)"

    def __getitem__(self, item: Index) -> AncestorMatrix:
        """Select masks, in the given order; a single index gives a matrix of one mask.

        Raises:
            IndexError: an index out of range, or a bool mask of another length.
        """
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"mask {item} of {len(self)}")
            item = [item % len(self)]
        if not isinstance(item, (slice, torch.Tensor)):
            # an empty list would become a float tensor
            item = torch.as_tensor(item) if len(item) else torch.zeros(0, dtype=torch.int64)
        return AncestorMatrix(self.tensor[item][:, item])

    def __iter__(self) -> Iterator[AncestorMatrix]:
        return (self[i] for i in range(len(self)))

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    def to(self, *args: Any, **kwargs: Any) -> AncestorMatrix:
        """A copy on another device (arguments as for ``torch.Tensor.to``; the type stays bool)."""
        return AncestorMatrix(self.tensor.to(*args, **kwargs))

    @staticmethod
    def cat(matrices: Sequence[AncestorMatrix]) -> AncestorMatrix:
        """Concatenate matrices block-diagonally: masks of different matrices are unrelated."""
        if not matrices:
            return AncestorMatrix(torch.zeros(0, 0, dtype=torch.bool))
        total = sum(len(matrix) for matrix in matrices)
        joined = torch.zeros(total, total, dtype=torch.bool, device=matrices[0].device)
        start = 0
        for matrix in matrices:
            end = start + len(matrix)
            joined[start:end, start:end] = matrix.tensor
            start = end
        return AncestorMatrix(joined)

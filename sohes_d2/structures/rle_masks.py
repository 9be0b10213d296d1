"""Compressed masks as a field of Detectron2's `Instances`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .masks import RLE, decode_mask, decode_masks


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

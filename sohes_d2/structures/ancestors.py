"""Ancestor matrix as a field of Detectron2's `Instances`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Union

import torch

# A bool mask (N,), indices (K,), a slice, or one index.
Index = Union[torch.Tensor, Sequence[int], slice, int]


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

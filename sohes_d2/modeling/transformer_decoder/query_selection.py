"""Queries that begin as the places of an image where an entity is likely, instead of learned ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

OCTAVES = 6  # of Fourier features: waves of 2 images down to 1/16 of an image


class PlaceEmbedding(nn.Module):
    """Where the places of a map are, as a learned projection of Fourier features.

    The dot product of two such embeddings can be a bump of any width around any place, which plain convolutional
    features cannot express: they are the same wherever the same thing stands.
    """

    def __init__(self, channels: int):
        """
        Args:
            channels: C of the embedding.
        """
        super().__init__()
        self.proj = nn.Linear(4 * OCTAVES, channels)

    def forward(self, size: tuple[int, int]) -> Tensor:
        """(H * W, C) embeddings of the places of an (H, W) map, row by row."""
        weight = self.proj.weight
        y, x = (torch.arange(side, device=weight.device, dtype=torch.float32).add(0.5).div(side) for side in size)
        waves = math.pi * 2.0 ** torch.arange(OCTAVES, device=weight.device)
        rows, columns = y[:, None] * waves, x[:, None] * waves
        rows = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, size[1], -1)
        columns = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(size[0], -1, -1)
        return self.proj(torch.cat([rows, columns], dim=2).flatten(0, 1).to(weight.dtype))


class QuerySelection(nn.Module):
    """The most likely places of the feature maps become the queries, as in two-stage DETRs (Mask DINO, CVPR 2023).

    A learned query must first find out which entities it is for, the same ones in every image. One that starts as the
    feature of a place knows where it is and what is there, so that few iterations or few images teach more; and the
    mask features are told where they are, so that a query can tell its place from one that looks alike. Nothing scores
    places but the decoder's own class head, which learns from those that were chosen.
    """

    def __init__(self, hidden_dim: int, num_queries: int, mask_dim: int):
        """
        Args:
            hidden_dim: channels C.
            num_queries: at most so many are chosen.
            mask_dim: channels of the mask features.
        """
        super().__init__()
        self.num_queries = num_queries
        self.place = PlaceEmbedding(hidden_dim)
        self.mask_place = PlaceEmbedding(mask_dim)
        self.proj = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def locate(self, mask_features: Tensor) -> Tensor:
        """(B, mask_dim, H, W) mask features that know where they are."""
        size = tuple(mask_features.shape[-2:])
        return mask_features + self.mask_place(size).transpose(0, 1).unflatten(1, size).to(mask_features.dtype)

    def forward(
        self,
        features: Sequence[Tensor],
        positions: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        classify: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            features: per map, (B, N, C).
            positions: per map, (B or 1, N, C), the positional embeddings that attention adds to queries.
            sizes: per map, (h, w) with h * w = N.
            classify: (B, N, C) to class logits (B, N, K + 1), the last for "no object".

        Returns:
            (B, Q, C) queries, the likeliest first, and their positions; Q is less than num_queries where there are
            not as many places.
        """
        places = torch.cat([f + self.place(size) for f, size in zip(features, sizes)], dim=1)
        places = self.norm(self.proj(places))
        where = torch.cat([p.expand(places.shape[0], -1, -1) for p in positions], dim=1)
        with torch.no_grad():
            logits = classify(places)
            likely = logits[..., :-1].amax(-1) - logits[..., -1]
            index = likely.topk(min(self.num_queries, likely.shape[1]), dim=1).indices
            index = index.unsqueeze(-1).expand(-1, -1, places.shape[-1])
        return places.gather(1, index), where.gather(1, index)

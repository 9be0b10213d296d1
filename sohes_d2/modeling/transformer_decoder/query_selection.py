"""Queries that begin as the places of an image where an entity is likely, instead of learned ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class QuerySelection(nn.Module):
    """The most likely places of the feature maps become the queries, as in two-stage DETRs (Mask DINO, CVPR 2023).

    A learned query must first find out which entities it is for, the same ones in every image. One that starts as the
    feature of a place knows where it is and what is there, so that few iterations or few images teach more. Nothing
    scores places but the decoder's own class head, which learns from those that were chosen.
    """

    def __init__(self, hidden_dim: int, num_queries: int):
        """
        Args:
            hidden_dim: channels C.
            num_queries: at most so many are chosen.
        """
        super().__init__()
        self.num_queries = num_queries
        self.proj = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, features: Sequence[Tensor], positions: Sequence[Tensor], classify: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Choose.

        Args:
            features: per map, (B, N, C).
            positions: per map, (B or 1, N, C), the positional embeddings.
            classify: (B, N, C) to class logits (B, N, K + 1), the last for "no object".

        Returns:
            (B, Q, C) queries, the likeliest first, and their positions; Q is less than num_queries where there are
            not as many places.
        """
        places = self.norm(self.proj(torch.cat(list(features), dim=1)))
        where = torch.cat([p.expand(places.shape[0], -1, -1) for p in positions], dim=1)
        with torch.no_grad():
            logits = classify(places)
            likely = logits[..., :-1].amax(-1) - logits[..., -1]
            index = likely.topk(min(self.num_queries, likely.shape[1]), dim=1).indices
            index = index.unsqueeze(-1).expand(-1, -1, places.shape[-1])
        return places.gather(1, index), where.gather(1, index)

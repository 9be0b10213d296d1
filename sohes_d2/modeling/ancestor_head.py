"""Ancestor head: predicts for each pair of queries whether one is an ancestor of the other."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AncestorHead(nn.Module):
    """Scores every ordered pair of queries by an asymmetric bilinear form.

    The probability that entity i is a (proper) ancestor of entity j, for their queries q_i and q_j, is

        P_ij = sigmoid(<W_a q_i, W_d q_j> / sqrt(dim) + b).

    SOHES has such a head [P]. Its equation was not available: this form is our decision [D]. There are two projections,
    because the relation is not symmetric; with their product a pair costs one dot product, so that all pairs of 1000
    queries are one small matrix product.

    The head returns the two factors of the product instead of the pairs. For the pairs of some queries (matched ones in
    training, kept ones in inference), select these first and call `ancestor_logits` on them.
    """

    def __init__(self, hidden_dim: int, dim: int = 256, prior: float = 0.05) -> None:
        """
        Args:
            hidden_dim: channels C of the queries.
            dim: channels of the two projections.
            prior: initial probability, in (0, 1), that sets b; most pairs of entities are not nested.
        """
        super().__init__()
        self.as_ancestor = nn.Linear(hidden_dim, dim, bias=False)  # W_a
        self.as_descendant = nn.Linear(hidden_dim, dim, bias=False)  # W_d
        self.bias = nn.Parameter(torch.full((1,), math.log(prior / (1 - prior))))  # b
        for projection in (self.as_ancestor, self.as_descendant):
            nn.init.xavier_uniform_(projection.weight)

    def forward(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Project queries (..., C) to the inputs of `ancestor_logits`.

        Returns:
            as_ancestor: (..., dim + 1), W_a q with b appended.
            as_descendant: (..., dim + 1), W_d q / sqrt(dim) with 1 appended.
            Both have the parameters' dtype, also under autocast, since b needs the precision.
        """
        ancestor = self.as_ancestor(queries).to(self.bias.dtype)
        descendant = self.as_descendant(queries).to(self.bias.dtype) / math.sqrt(self.as_descendant.out_features)
        bias = self.bias.expand(*ancestor.shape[:-1], 1)
        return torch.cat([ancestor, bias], dim=-1), torch.cat([descendant, torch.ones_like(bias)], dim=-1)


def ancestor_logits(as_ancestor: Tensor, as_descendant: Tensor) -> Tensor:
    """Logits of all ordered pairs of the queries given, from the two outputs of `AncestorHead`.

    Args:
        as_ancestor: (..., N, D).
        as_descendant: (..., M, D); usually the same queries, M = N.

    Returns:
        (..., N, M); [i, j] is the logit of "i is an ancestor of j". The diagonal is undefined.
    """
    return as_ancestor @ as_descendant.transpose(-2, -1)

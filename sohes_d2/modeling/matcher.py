"""Bipartite matching of queries to labels (DETR, ECCV 2020; Mask2Former, section 3)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from . import point_sampling

logger = logging.getLogger(__name__)


class HungarianMatcher(nn.Module):
    """Matches the queries of an image one-to-one with its labels.

    The cost of a pair is ``cost_class * -p(class) + cost_mask * CE + cost_dice * dice``. Both mask terms are means over
    ``num_points`` random points, the same for all queries and labels of an image.
    """

    def __init__(
        self, cost_class: float, cost_mask: float, cost_dice: float, num_points: int = 12544, query_chunk: int = 128
    ):
        """
        Args:
            cost_class, cost_mask, cost_dice: weights of the terms.
            num_points: P, random points per image.
            query_chunk: queries processed at once, as (query_chunk, P) logits. It bounds the memory, and on CPUs keeps
                the data in the cache; the costs do not depend on it.

        Raises:
            ValueError: all weights are 0.
        """
        super().__init__()
        if not (cost_class or cost_mask or cost_dice):
            raise ValueError("all matching costs are 0: give cost_class, cost_mask or cost_dice a weight")
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points
        self.query_chunk = query_chunk
        self._warned = False

    def extra_repr(self) -> str:
        names = ("cost_class", "cost_mask", "cost_dice", "num_points", "query_chunk")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """Match a batch.

        Args:
            outputs: "pred_logits" (B, Q, K+1) and "pred_masks" (B, Q, h, w) logits, of any float type.
            targets: B dicts of "labels" (N,) int64 in [0, K) and "masks" (N, H, W) bool; N may be 0 or more than Q.

        Returns:
            B pairs (queries, labels) of int64 indices, each (min(Q, N),), on the device of the masks; queries ascend.
        """
        device = outputs["pred_masks"].device
        costs = []
        for logits, masks, target in zip(outputs["pred_logits"], outputs["pred_masks"], targets):
            if len(target["labels"]):
                points = point_sampling.random_points(1, self.num_points, device)
                costs.append(self.cost_matrix(logits, masks, target["labels"], target["masks"], points))
            else:
                costs.append(masks.new_zeros((len(masks), 0)))
        # the only synchronization with the device: one copy of all costs, and one of all indices
        sizes = [cost.numel() for cost in costs]
        values = np.split(torch.cat([cost.flatten() for cost in costs]).cpu().double().numpy(), np.cumsum(sizes)[:-1])
        pairs = [linear_sum_assignment(self._finite(each.reshape(cost.shape))) for each, cost in zip(values, costs)]
        indices = torch.from_numpy(np.concatenate([np.stack(pair) for pair in pairs], axis=1)).long().to(device)
        return [(queries, labels) for queries, labels in indices.split([len(i) for i, _ in pairs], dim=1)]

    @torch.no_grad()
    def cost_matrix(self, logits: Tensor, masks: Tensor, labels: Tensor, label_masks: Tensor, points: Tensor) -> Tensor:
        """(Q, N) float32 costs of one image, computed in float32, also under autocast.

        Args:
            logits: (Q, K+1) class logits, "no object" last.
            masks: (Q, h, w) mask logits.
            labels: (N,) int64 classes.
            label_masks: (N, H, W) bool.
            points: (1, P, 2) from `point_sampling.random_points`.
        """
        with torch.autocast(masks.device.type, enabled=False):
            inside = point_sampling.sample_points(label_masks, points)
            probabilities = logits.float().softmax(-1)[:, labels]
            costs = [
                self.cost_mask * _cross_entropies(values, inside) + self.cost_dice * _dices(values, inside)
                for values in (point_sampling.sample_points(some, points) for some in masks.split(self.query_chunk))
            ]
            return torch.cat(costs) - self.cost_class * probabilities

    def _finite(self, cost: np.ndarray) -> np.ndarray:
        """Assign a prohibitive cost to pairs with a broken prediction (NaN, infinity), so that they are matched last.

        Otherwise the assignment would fail. The losses of such pairs are not finite, which the trainer reports.
        """
        finite = np.isfinite(cost)
        if finite.all():
            return cost
        if not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d matching costs are not finite: the model predicts NaN or infinity. "
                "If the losses do not recover, lower the learning rate or turn mixed precision off. "
                "Logged once.",
                np.count_nonzero(~finite),
                finite.size,
            )
        low, high = (cost[finite].min(), cost[finite].max()) if finite.any() else (0.0, 0.0)
        # exceeds any possible saving on all other pairs
        return np.where(finite, cost, high + 1 + min(cost.shape) * (high - low))


def _cross_entropies(logits: Tensor, inside: Tensor) -> Tensor:
    """(Q, N) mean binary cross-entropies of logits (Q, P) against labels (N, P) in [0, 1].

    Since CE(x, t) = softplus(x) - x t, one matrix product gives all pairs.
    """
    # relu(x) - log(sigmoid(|x|)) is softplus, three times as fast as torch's on a CPU; no gradient is needed here
    softplus = logits.relu() - logits.abs().sigmoid().log()
    return (softplus.sum(1, keepdim=True) - F.linear(logits, inside)) / logits.shape[1]


def _dices(logits: Tensor, inside: Tensor) -> Tensor:
    """(Q, N) dice losses of logits (Q, P) against labels (N, P), smoothed by 1."""
    probabilities = logits.sigmoid()
    both = F.linear(probabilities, inside)
    return 1 - (2 * both + 1) / (probabilities.sum(1, keepdim=True) + inside.sum(1) + 1)

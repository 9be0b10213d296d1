"""The rules of `Forest` as tensor operations: ancestors of masks where these are, without a loop over pairs of them.

A teacher's labels are made anew in each iteration, on the device. Encoding them for `Forest` would wait for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures.forest import TIE


def ancestors_by_probabilities(probabilities: Tensor, common: Tensor, threshold: float, theta_cover: float) -> Tensor:
    """The relation of ancestors of the forest that `Forest.from_probabilities` decodes.

    Args:
        probabilities: (N, N) in [0, 1], [i, j] of "i is an ancestor of j".
        common: (N, N) pixels that the masks share; on the diagonal, their areas, over 0.
        threshold: probability from which a pair counts.
        theta_cover: and the share of the descendant that the ancestor must cover.

    Returns:
        (N, N) bool, [i, j] = i is a proper ancestor of j.
    """
    areas = common.diagonal()
    inside = (probabilities.T >= threshold) & (areas[None] > areas[:, None])
    inside &= common / areas[:, None] >= theta_cover
    return _likeliest(inside, probabilities.double(), threshold, areas)


def ancestors_by_coverage(common: Tensor, theta_cover: float) -> Tensor:
    """The relation of ancestors of the forest that `Forest.from_masks` reads off the masks.

    Args:
        common: as of `ancestors_by_probabilities`.
        theta_cover: A is inside B if B covers this share of A, and not the reverse.

    Returns:
        (N, N) bool, [i, j] = i is a proper ancestor of j.
    """
    areas = common.diagonal()
    covered = common / areas[:, None] >= theta_cover
    return _ancestors(covered & ~covered.T, areas)


def _ancestors(inside: Tensor, areas: Tensor) -> Tensor:
    """Ancestors if the parent is the smallest of those a mask is ``inside`` of ([i, j]: i is inside j)."""
    n = len(areas)
    if not n:
        return inside
    # ranks differ where areas do not, so that a mask has one parent: of equal ones, the first
    rank = areas.argsort(stable=True).argsort()
    candidates = torch.where(inside, rank[None], n)
    parent = inside & (candidates == candidates.amin(1, keepdim=True))
    # [i, j] = j is reached from i by 1 step down, by up to 2, 4, ...
    reach = parent.T.float()
    for _ in range((n - 1).bit_length()):
        reach = (reach + reach @ reach > 0).float()
    return reach > 0


def _likeliest(inside: Tensor, probabilities: Tensor, threshold: float, areas: Tensor) -> Tensor:
    """Ancestors if the parent is the one with the likeliest chain: mask after mask, all possible parents at once."""
    chains = torch.eye(len(areas), dtype=torch.float64, device=areas.device)  # [i, j] = 1 if j is i or above i
    order = areas.neg().argsort(stable=True)
    rank = order.argsort()
    gains = torch.where(inside, probabilities.T, 0.0) - threshold
    for k in order.tolist():
        values = torch.where(inside[k], chains @ gains[k], -torch.inf)
        best = values.amax()
        equal = inside[k] & (values >= best - TIE) & (best >= -TIE)
        parent = torch.where(equal, rank, -1).argmax()
        chains[k] += chains[parent] * equal.any()
    return (chains.T > 0) & ~torch.eye(len(areas), dtype=torch.bool, device=areas.device)

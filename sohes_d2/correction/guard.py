"""Teacher statistics and collapse detection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import SOHESError
from ..structures.nms import intersections, ious

GRID = 128  # largest number of points per side at which teacher and student are compared


@dataclass(frozen=True)
class TeacherStatistics:
    """Means over a training step.

    Attributes:
        labels: the teacher's labels per image.
        score: mean score of the teacher's labels; None without labels.
        disagreement: mean of 1 - `best_overlaps` of the teacher's labels with the student; None without labels.
        finite: whether all outputs of the teacher are finite.
    """

    labels: float
    score: float | None
    disagreement: float | None
    finite: bool

    @classmethod
    def from_sums(cls, sums: Sequence[float]) -> TeacherStatistics:
        """Compute the means from the sums of `statistics_sums` over all processes."""
        images, labels, scores, overlaps, not_finite = sums
        if not labels:
            return cls(0.0, None, None, not_finite == 0)
        return cls(labels / images, scores / labels, 1 - overlaps / labels, not_finite == 0)


@torch.no_grad()
def finite_images(outputs: Mapping[str, Any]) -> Tensor:
    """(B,) bool: whether "pred_logits" (B, Q, K + 1) and "pred_masks" (B, Q, h, w) of an image are finite."""
    # the maximum is not finite if any value is NaN or +inf, and is computed without a copy of the masks
    masks = outputs["pred_masks"].flatten(1).amax(1)
    return torch.isfinite(outputs["pred_logits"]).flatten(1).all(1) & torch.isfinite(masks)


@torch.no_grad()
def statistics_sums(targets: Sequence[Mapping[str, Tensor]], masks: Tensor, finite: Tensor) -> Tensor:
    """Statistics of a training step that can be summed over processes.

    Args:
        targets: per image, the teacher's labels with "masks" (M, H, W) bool and "scores" (M,).
        masks: (B, Q, h, w) mask logits of the student.
        finite: (B,) bool, whether the teacher's outputs are finite.

    Returns:
        (5,) float32 on the masks' device: images, labels, sum of the labels' scores, sum of their overlaps with the
        student's masks, images for which the teacher's outputs are not finite.
    """
    scores = torch.cat([target["scores"] for target in targets]).float()
    overlaps = torch.cat([best_overlaps(target["masks"], logits) for target, logits in zip(targets, masks)])
    counts = scores.new_tensor([len(targets), len(scores)])
    return torch.cat([counts, torch.stack([scores.sum(), overlaps.sum(), (~finite).sum().float()])])


def best_overlaps(labels: Tensor, masks: Tensor) -> Tensor:
    """(M,) best IoU of each label with the predicted masks of an image.

    For monitoring only: without bipartite matching, and at no more than `GRID` x `GRID` points. Thin or tiny labels
    that fall between the points count as not found.

    Args:
        labels: (M, H, W) bool.
        masks: (Q, h, w) logits over the same image.
    """
    if not len(labels):
        return torch.zeros(0, device=masks.device)
    size = tuple(min(side, GRID) for side in masks.shape[-2:])
    sampled = F.interpolate(labels[:, None].to(torch.uint8), size, mode="nearest-exact")[:, 0] > 0
    predicted = F.interpolate(masks[:, None].float(), size, mode="nearest-exact")[:, 0] > 0
    common = intersections(sampled, predicted)
    return ious(common, sampled.flatten(1).sum(1), predicted.flatten(1).sum(1)).amax(1)


class CollapseGuard:
    """Counts consecutive periods in which the teacher produced almost no labels."""

    def __init__(self, period: int = 50, min_labels: float = 0.5, patience: int = 5):
        """
        Args:
            period: iterations over which labels are averaged.
            min_labels: mean number of labels per image below which a period counts as collapsed.
            patience: number of consecutive collapsed periods that count as a collapse.

        Raises:
            ValueError: a number out of its range.
        """
        if period < 1 or patience < 1 or min_labels < 0:
            raise ValueError(
                "CORRECTION.GUARD needs PERIOD and PATIENCE of at least 1 and MIN_LABELS of at least 0, got "
                f"{period}, {patience} and {min_labels}"
            )
        self.period = period
        self.min_labels = min_labels
        self.patience = patience
        self._labels: list[float] = []
        self._collapsed = 0

    @classmethod
    def from_config(cls, cfg: Any) -> CollapseGuard:
        """The guard of ``cfg.CORRECTION.GUARD``."""
        node = cfg.CORRECTION.GUARD
        return cls(node.PERIOD, node.MIN_LABELS, node.PATIENCE)

    def observe(self, statistics: TeacherStatistics) -> bool:
        """Record a training step.

        Returns:
            True if this step ends a period that is not collapsed.

        Raises:
            SOHESError: the teacher's outputs are not finite, or ``patience`` periods in a row are collapsed.
        """
        if not statistics.finite:
            raise SOHESError("the teacher's outputs are not finite")
        self._labels.append(statistics.labels)
        if len(self._labels) < self.period:
            return False
        mean = sum(self._labels) / len(self._labels)
        self._labels.clear()
        if mean >= self.min_labels:
            self._collapsed = 0
            return True
        self._collapsed += 1
        if self._collapsed >= self.patience:
            raise SOHESError(
                f"the teacher had {mean:.3g} labels per image in the last {self.period} iterations; the mean was below "
                f"{self.min_labels:g} in {self._collapsed} such periods in a row"
            )
        return False

    def state_dict(self) -> dict[str, Any]:
        """State of `observe`: labels per image in the current period, and consecutive collapsed periods."""
        return {"labels": list(self._labels), "collapsed": self._collapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self._labels = list(state["labels"])
        self._collapsed = state["collapsed"]

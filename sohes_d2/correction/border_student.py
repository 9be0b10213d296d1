"""Border student: learns the borders of entities from the masks of label files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY

from ..data.training.border_counts import BorderCountMapper
from ..exploration.border_network import BorderNetwork
from .teacher import teacher_of, update_teacher


@META_ARCH_REGISTRY.register()
class BorderStudent(nn.Module):
    """Trains a `BorderNetwork` on the masks of label files; its EMA (the teacher) is the network used afterwards.

    The target of a pixel is log(1 + n) / log(1 + COUNT), at most 1, where n is the number of labels that end there: few
    at noise, many at borders that persist over many merges.

    In evaluation it returns the border strength of each image; phase 1 loads it with `EXPLORATION.BORDER.WEIGHTS`.
    """

    updates: Tensor
    build_training_mapper = BorderCountMapper

    @configurable
    def __init__(
        self,
        *,
        network: BorderNetwork,
        image_format: str = "RGB",
        count: int = 64,
        border_weight: float = 4.0,
        jitter: float = 0.2,
        momentum: float = 0.999,
    ):
        """
        Args:
            network: the student; the teacher is created as a copy.
            image_format: channel order of the inputs, "RGB" or "BGR".
            count: number of labels at which the target reaches 1.
            border_weight: w; the loss of a pixel with target t is weighted by 1 + w * t.
            jitter: in training, photos are multiplied by up to 1 +- this and channels shifted by up to 85 times this.
            momentum: of the teacher's moving average; lower in the first iterations.

        Raises:
            ValueError: a setting out of range.
        """
        super().__init__()
        if count < 1 or border_weight < 0 or not 0 <= jitter < 1 or not 0 <= momentum < 1:
            raise ValueError(
                "MODEL.BORDER_NETWORK needs COUNT of at least 1, BORDER_WEIGHT of at least 0, JITTER and EMA_MOMENTUM "
                f"in [0, 1); got {count}, {border_weight}, {jitter}, {momentum}"
            )
        self.student = network
        self.teacher = teacher_of(network)
        self.image_format = image_format
        self.count = count
        self.border_weight = border_weight
        self.jitter = jitter
        self.momentum = momentum
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node = cfg.MODEL.BORDER_NETWORK
        return {
            "network": BorderNetwork(node.CHANNELS),
            "image_format": cfg.INPUT.FORMAT,
            "count": node.COUNT,
            "border_weight": node.BORDER_WEIGHT,
            "jitter": node.JITTER,
            "momentum": node.EMA_MOMENTUM,
        }

    @property
    def device(self) -> torch.device:
        return self.updates.device

    def train(self, mode: bool = True) -> BorderStudent:
        """Set the mode of all modules except the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """The loss in training, the teacher's border strength in evaluation.

        Args:
            batched_inputs: per image "image" (3, H, W), in training of one size and with "border_counts" (H, W), see
                `BorderCountMapper`.

        Returns:
            "loss_border", or per image "border_strength" (H, W) in [0, 1].
        """
        if not self.training:
            return [
                {"border_strength": torch.sigmoid(self.teacher(images))[0]}
                for images in (self._rgb(item["image"].to(self.device)[None]) for item in batched_inputs)
            ]
        self._follow()
        images = torch.stack([item["image"] for item in batched_inputs]).to(self.device)
        counts = torch.stack([item["border_counts"] for item in batched_inputs]).to(self.device)
        targets = border_targets(counts, self.count)
        weights = (counts >= 0) * (1 + self.border_weight * targets)
        logits = self.student(self._jittered(self._rgb(images.float())))
        loss = F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
        return {"loss_border": loss / (counts >= 0).sum().clamp(min=1)}

    def _follow(self) -> None:
        """Update the teacher with the student, as changed by the optimizer in the last iteration."""
        done = int(self.updates)
        update_teacher(self.teacher, self.student, min(self.momentum, done / (done + 10)))
        self.updates += 1

    def _rgb(self, images: Tensor) -> Tensor:
        return images.flip(1) if self.image_format == "BGR" else images

    def _jittered(self, images: Tensor) -> Tensor:
        gain = 1 + self.jitter * (2 * torch.rand(len(images), 1, 1, 1, device=images.device) - 1)
        shift = 85 * self.jitter * (2 * torch.rand(len(images), 3, 1, 1, device=images.device) - 1)
        return (images * gain + shift).clamp(0, 255)


def border_targets(counts: Tensor, count: int) -> Tensor:
    """Target border strength: log(1 + n) / log(1 + count), at most 1.

    Args:
        counts: integers n, labels that end at a pixel; negative counts as 0.
        count: number of labels at which the target reaches 1.

    Returns:
        float32 in [0, 1], of the shape of ``counts``.
    """
    return (torch.log1p(counts.clamp(min=0).float()) / math.log1p(count)).clamp(max=1)

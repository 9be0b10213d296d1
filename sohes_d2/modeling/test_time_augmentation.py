"""Test-time augmentation: flips and rotations of an image, and the fusion of their masks.

A model trained on noisy labels makes different errors for each transform. Masks that many transforms agree on are more
often correct than confident masks of one, and averaged outlines are more accurate. This is Data Distillation
(Radosavovic et al., CVPR 2018) for masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..structures.nms import first_of_each, intersections, ious
from .masks import entity_probabilities

Outputs = dict[str, Any]

_FUSED = ("pred_logits", "pred_masks", "pred_ancestors")
_MEMBER_IOU = 0.5  # minimum IoU at which masks of two transforms count as the same entity
_SURE = 1e-6  # probabilities are clamped to [this, 1 - this], since logits of 0 and 1 are infinite


@dataclass(frozen=True)
class Transform:
    """A transform of a map (..., H, W): optional horizontal flip, then 90-degree rotations, counter-clockwise."""

    hflip: bool = False
    quarters: int = 0

    def apply(self, maps: Tensor) -> Tensor:
        """Transform the maps; an odd number of 90-degree steps gives (..., W, H)."""
        maps = maps.flip(-1) if self.hflip else maps
        return torch.rot90(maps, self.quarters, (-2, -1)) if self.quarters else maps

    def undo(self, maps: Tensor) -> Tensor:
        """Invert `apply`."""
        maps = torch.rot90(maps, -self.quarters, (-2, -1)) if self.quarters else maps
        return maps.flip(-1) if self.hflip else maps


TRANSFORMS = {
    "identity": Transform(),
    "hflip": Transform(hflip=True),
    "rot90": Transform(quarters=1),
    "rot180": Transform(quarters=2),
    "rot270": Transform(quarters=3),
    "hflip_rot90": Transform(hflip=True, quarters=1),
    "hflip_rot180": Transform(hflip=True, quarters=2),
    "hflip_rot270": Transform(hflip=True, quarters=3),
}


@dataclass(frozen=True)
class TTA:
    """Runs a model on several transforms of an image and merges the outputs.

    Attributes:
        transforms: the first one is the unchanged image.
        nms_threshold: of two masks with a higher IoU, the one with less support is removed.
    """

    transforms: tuple[Transform, ...] = (Transform(),)
    nms_threshold: float = 0.6

    @classmethod
    def from_config(cls, node: Any, key: str) -> TTA:
        """Build from a config node with TRANSFORMS and NMS_THRESHOLD.

        Args:
            node: for example ``cfg.TEST.TTA``.
            key: its name, for error messages.

        Raises:
            ValueError: names that are not in `TRANSFORMS`, are repeated, or do not begin with "identity".
        """
        names = list(node.TRANSFORMS)
        unknown = [name for name in names if name not in TRANSFORMS]
        if unknown:
            raise ValueError(
                f"{key}.TRANSFORMS has the unknown transform {unknown[0]!r}; known are {', '.join(TRANSFORMS)}"
            )
        if names[:1] != ["identity"]:
            raise ValueError(f"{key}.TRANSFORMS must begin with 'identity', the unchanged image; got {names}")
        if len(set(names)) < len(names):
            raise ValueError(f"{key}.TRANSFORMS has a transform twice: {names}")
        return cls(tuple(TRANSFORMS[name] for name in names), node.NMS_THRESHOLD)

    def ask(self, segment: Callable[[Tensor], Outputs], images: Tensor) -> list[Outputs]:
        """The model's outputs for each transform, with the masks transformed back to the images.

        Args:
            segment: from normalised images (B, 3, H, W) to outputs with "pred_masks" (B, Q, h, w).
            images: (B, 3, H, W), padded; H and W are multiples of the masks' stride, so that a mirrored mask lies on
                the same grid.
        """
        found = []
        for transform in self.transforms:
            outputs = segment(transform.apply(images))
            # outputs of earlier decoder layers are not needed
            found.append({name: outputs[name] for name in _FUSED if name in outputs})
            found[-1]["pred_masks"] = transform.undo(outputs["pred_masks"])
        return found

    @torch.no_grad()
    def fuse(self, found: Sequence[Outputs]) -> Outputs:
        """Merge the outputs of all transforms to outputs of the same form.

        A query's support is the mean over the transforms of the largest product of entity probability and mask IoU
        there. The queries of all transforms are filtered by NMS on their support, and those with the most
        support are kept. Their masks are the means over the transforms in which they match.

        Args:
            found: see `ask`: "pred_logits" (B, Q, K + 1), "pred_masks" (B, Q, h, w) and, with an ancestor head,
                "pred_ancestors", two (B, Q, D). Outputs of a single transform are returned unchanged.

        Returns:
            The same, float32, by descending support: "pred_logits" (B, Q, 2), with the support as entity probability,
            and 0 for surplus queries where fewer than Q masks are left; "pred_masks"; "pred_ancestors" of the query of
            the first transform that overlaps a mask most, since only embeddings of one transform can be compared.
        """
        if len(found) == 1:
            return found[0]
        images = [
            _fuse_one([each["pred_logits"][k] for each in found], [each["pred_masks"][k] for each in found], self)
            for k in range(len(found[0]["pred_masks"]))
        ]
        support, masks, first = (torch.stack(values) for values in zip(*images))
        support = support.clamp(max=1)  # rounding may exceed 1; a support of 0 is a logit of minus infinity
        fused: Outputs = {
            "pred_logits": torch.stack([support, 1 - support], dim=-1).log(),
            "pred_masks": masks,
        }
        if "pred_ancestors" in found[0]:
            fused["pred_ancestors"] = tuple(
                side.gather(1, first[..., None].expand(-1, -1, side.shape[-1])) for side in found[0]["pred_ancestors"]
            )
        return fused


NO_TTA = TTA()  # the unchanged image alone


def _fuse_one(logits: Sequence[Tensor], masks: Sequence[Tensor], settings: TTA) -> tuple[Tensor, Tensor, Tensor]:
    """(Q,) support, (Q, h, w) logits and (Q,) queries of the first transform, from V (Q, K + 1) and V (Q, h, w)."""
    count = len(logits[0])
    entity = torch.cat([entity_probabilities(a, b) for a, b in zip(logits, masks)]).nan_to_num(0)
    values = torch.cat([each.float() for each in masks])
    inside = values > 0
    common = intersections(inside, inside)
    overlaps = ious(common, common.diagonal(), common.diagonal())
    by_transform = overlaps.unflatten(1, (-1, count))
    support = (by_transform * entity.unflatten(0, (-1, count))).amax(-1).mean(1)
    order = support.argsort(descending=True, stable=True)
    kept = order[first_of_each(overlaps[order][:, order] > settings.nms_threshold)][:count]

    nearest, query = by_transform[kept].max(-1)
    shows = (nearest >= _MEMBER_IOU).float()
    probabilities = values.sigmoid().nan_to_num(0).unflatten(0, (-1, count))
    fused = torch.zeros_like(values[: len(kept)])
    for one_shows, one_query, one in zip(shows.T, query.T, probabilities):
        fused += one_shows[:, None, None] * one[one_query]
    fused = (fused / shows.sum(1).clamp(min=1)[:, None, None]).logit(_SURE)
    missing = count - len(kept)
    support = torch.cat([support[kept], support.new_zeros(missing)])
    fused = torch.cat([fused, fused.new_full((missing, *fused.shape[1:]), -1.0)])
    return support, fused, torch.cat([query[:, 0], query.new_zeros(missing)])

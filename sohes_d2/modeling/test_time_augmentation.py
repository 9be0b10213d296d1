"""Test-time augmentation: mirrored and rotated views of an image, and the fusion of their masks.

A model trained on noisy labels makes different errors in each view. Masks that many views agree on are more often right
than confident masks of one view, and averaged outlines are more accurate: Data Distillation (Radosavovic et al.,
CVPR 2018), for masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..structures.nms import first_of_each, intersections, ious
from .mask_scores import entity_probabilities

Outputs = dict[str, Any]

_FUSED = ("pred_logits", "pred_masks", "pred_ancestors")
_MEMBER_IOU = 0.5  # minimum IoU at which masks of two views count as the same entity
_SURE = 1e-6  # probabilities are clamped by this much from 0 and 1, where logits are infinite


@dataclass(frozen=True)
class View:
    """A transform of a map (..., H, W): optional horizontal flip, then 90-degree rotations, counter-clockwise."""

    mirrored: bool = False
    quarters: int = 0

    def apply(self, maps: Tensor) -> Tensor:
        """Transform the maps to this view; an odd number of 90-degree steps gives (..., W, H)."""
        maps = maps.flip(-1) if self.mirrored else maps
        return torch.rot90(maps, self.quarters, (-2, -1)) if self.quarters else maps

    def undo(self, maps: Tensor) -> Tensor:
        """Invert `apply`."""
        maps = torch.rot90(maps, -self.quarters, (-2, -1)) if self.quarters else maps
        return maps.flip(-1) if self.mirrored else maps


VIEWS = {
    "same": View(),
    "mirrored": View(mirrored=True),
    "turned_90": View(quarters=1),
    "turned_180": View(quarters=2),
    "turned_270": View(quarters=3),
    "mirrored_turned_90": View(mirrored=True, quarters=1),
    "mirrored_turned_180": View(mirrored=True, quarters=2),
    "mirrored_turned_270": View(mirrored=True, quarters=3),
}


@dataclass(frozen=True)
class ViewFusion:
    """Runs a model on several views of an image and merges the outputs.

    Attributes:
        views: the first one is the unchanged image.
        nms_threshold: of two masks with a higher IoU, the one with less support is removed.
    """

    views: tuple[View, ...] = (View(),)
    nms_threshold: float = 0.6

    @classmethod
    def from_config(cls, node: Any, key: str) -> ViewFusion:
        """Build from a config node with TRANSFORMS and NMS_THRESHOLD.

        Args:
            node: for example ``cfg.TEST.TTA``.
            key: its name, for errors.

        Raises:
            ValueError: names that are not in `VIEWS`, are repeated, or do not begin with "same".
        """
        names = list(node.TRANSFORMS)
        unknown = [name for name in names if name not in VIEWS]
        if unknown:
            raise ValueError(f"{key}.TRANSFORMS has the unknown view {unknown[0]!r}; known are {', '.join(VIEWS)}")
        if names[:1] != ["same"]:
            raise ValueError(f"{key}.TRANSFORMS must begin with 'same', the unchanged image; got {names}")
        if len(set(names)) < len(names):
            raise ValueError(f"{key}.TRANSFORMS has a view twice: {names}")
        return cls(tuple(VIEWS[name] for name in names), node.NMS_THRESHOLD)

    def ask(self, segment: Callable[[Tensor], Outputs], images: Tensor) -> list[Outputs]:
        """The model's outputs for each view, with the masks transformed back to the images.

        Args:
            segment: from normalised images (B, 3, H, W) to outputs with "pred_masks" (B, Q, h, w).
            images: (B, 3, H, W), padded; H and W are multiples of the masks' stride, so that a mirrored mask lies on
                the same grid.
        """
        found = []
        for view in self.views:
            outputs = segment(view.apply(images))
            # outputs of earlier decoder layers are not needed
            found.append({name: outputs[name] for name in _FUSED if name in outputs})
            found[-1]["pred_masks"] = view.undo(outputs["pred_masks"])
        return found

    @torch.no_grad()
    def fuse(self, found: Sequence[Outputs]) -> Outputs:
        """Merge the outputs of all views to outputs of the same form.

        A query's support is the mean over the views of its best match there, by the product of entity probability and
        mask IoU. The queries of all views are filtered by NMS on their support, and those with the most support are
        kept. Their masks are the means over the views in which they match.

        Args:
            found: see `ask`: "pred_logits" (B, Q, K + 1), "pred_masks" (B, Q, h, w) and, with an ancestor head,
                "pred_ancestors", two (B, Q, D). A single view is returned unchanged.

        Returns:
            The same, float32, by descending support: "pred_logits" (B, Q, 2), with the support as entity probability,
            and 0 for surplus queries where fewer than Q masks are left; "pred_masks"; "pred_ancestors" of the query of
            the first view that overlaps a mask most, since only embeddings of one view can be compared.
        """
        if len(found) == 1:
            return found[0]
        images = [
            _fuse_one([view["pred_logits"][k] for view in found], [view["pred_masks"][k] for view in found], self)
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


AS_IT_IS = ViewFusion()  # one view


def _fuse_one(logits: Sequence[Tensor], masks: Sequence[Tensor], settings: ViewFusion) -> tuple[Tensor, Tensor, Tensor]:
    """(Q,) support, (Q, h, w) logits and (Q,) queries of the first view, of V times (Q, K + 1) and (Q, h, w)."""
    count = len(logits[0])
    entity = torch.cat([entity_probabilities(a, b) for a, b in zip(logits, masks)]).nan_to_num(0)
    values = torch.cat([each.float() for each in masks])
    inside = values > 0
    common = intersections(inside, inside)
    overlaps = ious(common, common.diagonal(), common.diagonal())
    by_view = overlaps.unflatten(1, (-1, count))
    support = (by_view * entity.unflatten(0, (-1, count))).amax(-1).mean(1)
    order = support.argsort(descending=True, stable=True)
    kept = order[first_of_each(overlaps[order][:, order] > settings.nms_threshold)][:count]

    nearest, query = by_view[kept].max(-1)
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

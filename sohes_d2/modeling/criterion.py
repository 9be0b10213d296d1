"""Mask2Former's losses (CVPR 2022, section 3.3) and the loss of the ancestor head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.utils import comm

from . import point_sampling
from .ancestor_head import ancestor_logits

# Per image: indices of the matched queries and, in the same order, of their labels.
Matches = list[tuple[Tensor, Tensor]]
Targets = list[dict[str, Tensor]]


class SetCriterion(nn.Module):
    """Losses of predicted masks against labels, for the output of the last layer and all auxiliary outputs.

    How a loss is averaged decides whether several processes give the same result as one with the whole batch:

    - ``loss_mask``, ``loss_dice``: over all labels of all processes (their number is exchanged): the same.
    - ``loss_ancestor``: over the images of a process, where images without known ancestors, or with fewer than
      two entities, count as 0: the same if all processes have equally many images.
    - ``loss_ce``: over the queries of a process, weighted; the sum of weights grows with the number of labels. So it is
      the same only if the processes have equally many labels, as in Mask2Former.

    Labels and images may have weights (for uncertain labels, and for images with unknown labels). A weight multiplies
    its terms and enters the weighted mean, except that ``loss_ancestor`` stays a mean over all images. Without weights,
    or if all are 1, these are Mask2Former's losses.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        matcher: nn.Module,
        weight_dict: Mapping[str, float],
        num_classes: int = 1,
        eos_coef: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
    ):
        """
        Args:
            matcher: ``(outputs, targets) -> Matches``, see `HungarianMatcher`.
            weight_dict: weights of the losses by name; to be applied by the caller.
            num_classes: K, without "no object".
            eos_coef: weight of "no object" in ``loss_ce``, greater than 0.
            num_points: points per mask at which ``loss_mask`` and ``loss_dice`` are computed.
            oversample_ratio, importance_sample_ratio: see `point_sampling.uncertain_points`.

        Raises:
            ValueError: a number out of its range.
        """
        super().__init__()
        if eos_coef <= 0:
            raise ValueError(f"eos_coef must be over 0, or a batch without labels has no loss_ce; got {eos_coef}")
        if oversample_ratio < 1 or not 0 <= importance_sample_ratio <= 1:
            raise ValueError(
                "oversample_ratio must be at least 1 and importance_sample_ratio in [0, 1], "
                f"got {oversample_ratio} and {importance_sample_ratio}"
            )
        self.matcher = matcher
        self.weight_dict = dict(weight_dict)
        self.num_classes = num_classes
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        weights = torch.ones(num_classes + 1)
        weights[-1] = eos_coef
        self.register_buffer("empty_weight", weights)

    def extra_repr(self) -> str:
        names = ("num_classes", "num_points", "oversample_ratio", "importance_sample_ratio", "weight_dict")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    def forward(self, outputs: dict[str, Any], targets: Targets) -> dict[str, Tensor]:
        """Losses of a batch, in float32 for outputs of any type, also under autocast.

        Args:
            outputs: "pred_logits" (B, Q, K+1), "pred_masks" (B, Q, h, w) logits, optionally "pred_ancestors" (two
                (B, Q, D), see `ancestor_head.AncestorHead`) and "aux_outputs", a list of such dicts.
            targets: B dicts of "labels" (N,) int64, "masks" (N, H, W) bool, all padded to one size, and optionally
                "ancestors" (N, N) bool; an image without these adds nothing to ``loss_ancestor``. Weights, on the
                outputs' device, at least 0, 1 where not given: "label_weights" (N,) float, of a label's terms in
                ``loss_mask`` and ``loss_dice`` and of its query's in ``loss_ce``, so that 0 excludes the query
                from these losses; and "image_weight", a float scalar, of all the image's terms.

        Returns:
            Unweighted scalars "loss_ce", "loss_mask", "loss_dice", with an ancestor head "loss_ancestor"; and the same
            with the suffix "_i" for the auxiliary output i. All are connected to the outputs, with a gradient of 0 if
            there is nothing to learn, as distributed training requires.
        """
        device = outputs["pred_masks"].device
        with torch.autocast(device.type, enabled=False):
            weights = [_label_weights(target, device) for target in targets]
            num_masks = _mean_over_processes(torch.cat(weights).sum()).clamp(min=1)
            losses = self._layer_losses(outputs, targets, weights, num_masks)
            for i, layer in enumerate(outputs.get("aux_outputs", [])):
                # each layer has its own matching
                for name, loss in self._layer_losses(layer, targets, weights, num_masks).items():
                    losses[f"{name}_{i}"] = loss
        return losses

    def _layer_losses(
        self, outputs: dict[str, Any], targets: Targets, weights: list[Tensor], num_masks: Tensor
    ) -> dict[str, Tensor]:
        matches = self.matcher(outputs, targets)
        losses = {"loss_ce": self._class_loss(outputs["pred_logits"], targets, weights, matches)}
        losses.update(self._mask_losses(outputs["pred_masks"], targets, weights, matches, num_masks))
        if "pred_ancestors" in outputs:
            as_ancestor, as_descendant = outputs["pred_ancestors"]
            losses["loss_ancestor"] = _ancestor_loss(as_ancestor, as_descendant, targets, matches)
        return losses

    def _class_loss(self, logits: Tensor, targets: Targets, weights: list[Tensor], matches: Matches) -> Tensor:
        """Weighted mean cross-entropy; queries without a label have the class "no object" and its weight."""
        classes = torch.full(logits.shape[:2], self.num_classes, dtype=torch.int64, device=logits.device)
        shares = torch.ones(logits.shape[:2], device=logits.device)
        for row, share, target, weight, (queries, labels) in zip(classes, shares, targets, weights, matches):
            row[queries] = target["labels"][labels]
            share *= target.get("image_weight", 1.0)
            share[queries] = weight[labels]
        class_weights = self.empty_weight.float()
        losses = F.cross_entropy(logits.float().flatten(0, 1), classes.flatten(), class_weights, reduction="none")
        total = (class_weights[classes] * shares).sum()
        # if all weights are 0, the loss and its gradient must be 0: do not divide by a tiny number
        return (losses * shares.flatten()).sum() / torch.where(total > 0, total, 1.0)

    def _mask_losses(
        self, masks: Tensor, targets: Targets, weights: list[Tensor], matches: Matches, num_masks: Tensor
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and dice of the matched masks, at uncertain points."""
        images = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(matches)])
        matched = masks[images, torch.cat([queries for queries, _ in matches])].float()
        if not len(matched):
            return {"loss_mask": matched.sum(), "loss_dice": matched.sum()}
        points = point_sampling.uncertain_points(
            matched.detach(), self.num_points, self.oversample_ratio, self.importance_sample_ratio
        )
        logits = point_sampling.sample_points(matched, points)
        per_image = points.split([len(labels) for _, labels in matches])
        inside = torch.cat(
            [
                point_sampling.sample_points(target["masks"][labels], some)
                for target, (_, labels), some in zip(targets, matches, per_image)
            ]
        )
        shares = torch.cat([weight[labels] for weight, (_, labels) in zip(weights, matches)])
        cross_entropies = F.binary_cross_entropy_with_logits(logits, inside, reduction="none").mean(1)
        return {
            "loss_mask": (cross_entropies * shares).sum() / num_masks,
            "loss_dice": (_dice_losses(logits, inside) * shares).sum() / num_masks,
        }


def pair_loss(logits: Tensor, ancestors: Tensor) -> Tensor:
    """Class-balanced binary cross-entropy over the ordered pairs of one image's entities.

    Nearly all pairs are unrelated, so related and unrelated pairs are averaged separately with weight 1/2 each; if one
    kind is missing, the other has weight 1. No entity is paired with itself.

    Args:
        logits: (n, n), [i, j] of "i is an ancestor of j".
        ancestors: (n, n) bool, the targets.

    Returns:
        A scalar; 0 for fewer than two entities.
    """
    different = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    related = (ancestors & different).float()
    unrelated = (~ancestors & different).float()
    sums = torch.stack([related.sum(), unrelated.sum()])
    # if one kind is empty, the other has the whole weight
    share = 1 / (sums.clamp(min=1) * (sums > 0).sum().clamp(min=1))
    weights = related * share[0] + unrelated * share[1]
    return F.binary_cross_entropy_with_logits(logits, ancestors.float(), weights, reduction="sum")


def _label_weights(target: dict[str, Tensor], device: torch.device) -> Tensor:
    """(N,) weights of an image's labels: their own times the image's."""
    weights = target.get("label_weights")
    if weights is None:
        weights = torch.ones(len(target["labels"]), device=device)
    return weights.float() * target.get("image_weight", 1.0)


def _ancestor_loss(as_ancestor: Tensor, as_descendant: Tensor, targets: Targets, matches: Matches) -> Tensor:
    """Mean over all images of `pair_loss` among the matched queries, times the images' weights.

    It is 0 for images without known ancestors.
    """
    # empty sums: 0, but connected to both outputs even if no image adds anything
    total = as_ancestor[..., :0].sum().float() + as_descendant[..., :0].sum().float()
    for ancestor, descendant, target, (queries, labels) in zip(as_ancestor, as_descendant, targets, matches):
        if "ancestors" in target:
            logits = ancestor_logits(ancestor[queries].float(), descendant[queries].float())
            loss = pair_loss(logits, target["ancestors"][labels][:, labels])
            total = total + loss * target.get("image_weight", 1.0)
    return total / len(targets)


def _dice_losses(logits: Tensor, inside: Tensor) -> Tensor:
    """(N,) dice losses of logits (N, P) against labels (N, P) in [0, 1], smoothed by 1."""
    probabilities = logits.sigmoid()
    both = (probabilities * inside).sum(1)
    return 1 - (2 * both + 1) / (probabilities.sum(1) + inside.sum(1) + 1)


def _mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all processes, as a tensor, to avoid a GPU synchronization."""
    tensor = value.detach().clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
        tensor /= comm.get_world_size()
    return tensor

"""Pseudo-labels from the teacher's outputs (SOHES, section 3.3, self-correction)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from detectron2.config import configurable

from ..modeling.ancestor_head import ancestor_logits
from ..modeling.mask_refinement import refine_masks
from ..modeling.mask_scores import entity_probabilities, full_size_logits, measure
from ..structures.hierarchy import ancestors_of, parents_by_coverage, parents_by_probability
from ..structures.nms import first_of_each, intersections, ious
from .thresholds import Threshold, build_threshold

Size = tuple[int, int]
Target = dict[str, Tensor]

ANCESTOR_SOURCES = ("teacher", "coverage", "none")


class TeacherTargets:
    """Converts confident predictions of the teacher to pseudo-labels, used in addition to the initial labels.

    A mask becomes a label if its score (see `mask_scores`) passes a threshold that may depend on its area. Its outline
    may then be moved to the edges of the photo [D], which adds information that the teacher lacks. Duplicates of a
    better mask are removed.

    A label that duplicates an initial one would count twice, once in each branch. So its weight is lowered such that
    both branches together give it the weight of a teacher's label [D]. It is not removed, since the teacher's branch
    would then train the student to predict no entity there.
    """

    @configurable
    def __init__(
        self,
        *,
        threshold: Threshold,
        initial_iou_threshold: float = 0.5,
        nms_threshold: float = 0.9,
        max_labels: int = 200,
        min_area: int = 16,
        ancestors: str = "teacher",
        ancestor_threshold: float = 0.5,
        theta_cover: float = 0.5,
        theta_cover_alone: float = 0.9,
        max_child_area: float = 0.8,
        refinement_radius: int = 0,
        refinement_epsilon: float = 0.01,
        chunk_bytes: int = 256 * 1024 * 1024,
    ):
        """
        Args:
            threshold: selects masks by area and score.
            initial_iou_threshold: a mask that overlaps an initial label by more duplicates it; in [0, 1].
            nms_threshold: of two masks with a higher IoU, the lower-scored one is removed; 1 keeps all.
            max_labels: per image, the best first.
            min_area: pixels of the model's input; smaller masks are not labels.
            ancestors: "teacher": from its ancestor head; "coverage": from the masks' coverage; "none".
            ancestor_threshold, theta_cover: of "teacher", see `hierarchy.parents_by_probability`.
            theta_cover_alone: of "coverage", see `hierarchy.parents_by_coverage`.
            max_child_area: maximum share of its parent's area that a label can take, for both.
            refinement_radius, refinement_epsilon: see `refine_masks`; a radius of 0 turns refinement off.
            chunk_bytes: memory of the full-size logits that exist at once (at least one mask's).

        Raises:
            ValueError: a setting out of its range.
        """
        if ancestors not in ANCESTOR_SOURCES:
            raise ValueError(f"CORRECTION.ANCESTORS must be one of {', '.join(ANCESTOR_SOURCES)}; got {ancestors!r}")
        if max_labels < 1:
            raise ValueError(f"CORRECTION.MAX_LABELS must be at least 1, got {max_labels}")
        self.threshold = threshold
        self.initial_iou_threshold = initial_iou_threshold
        self.nms_threshold = nms_threshold
        self.max_labels = max_labels
        self.min_area = min_area
        self.ancestors = ancestors
        self.ancestor_threshold = ancestor_threshold
        self.theta_cover = theta_cover
        self.theta_cover_alone = theta_cover_alone
        self.max_child_area = max_child_area
        self.refinement_radius = refinement_radius
        self.refinement_epsilon = refinement_epsilon
        self.chunk_bytes = chunk_bytes

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {
            "threshold": build_threshold(cfg),
            "initial_iou_threshold": cfg.CORRECTION.INITIAL_IOU_THRESHOLD,
            # as for the initial labels
            "nms_threshold": cfg.CORRECTION.NMS_THRESHOLD,
            "max_labels": cfg.CORRECTION.MAX_LABELS,
            "min_area": cfg.CORRECTION.MIN_AREA,
            "ancestors": cfg.CORRECTION.ANCESTORS,
            "ancestor_threshold": cfg.MODEL.ANCESTOR_HEAD.THRESHOLD,
            "theta_cover": cfg.MODEL.ANCESTOR_HEAD.THETA_COVER,
            "theta_cover_alone": cfg.TEST.THETA_COVER,
            "max_child_area": cfg.MODEL.ANCESTOR_HEAD.MAX_CHILD_AREA,
            "refinement_radius": cfg.CORRECTION.REFINEMENT.RADIUS,
            "refinement_epsilon": cfg.CORRECTION.REFINEMENT.EPSILON,
            "chunk_bytes": cfg.TEST.MASK_CHUNK_BYTES,
        }

    @torch.no_grad()
    def __call__(
        self,
        outputs: dict[str, Any],
        initial: Sequence[Target | None],
        padded_size: Size,
        image_sizes: Sequence[Size],
        branch_weights: tuple[float, float],
        photos: Sequence[Tensor] | None = None,
    ) -> list[Target]:
        """Labels of a batch, all on the device of the outputs, in float32 whatever the outputs' type.

        Args:
            outputs: the teacher's "pred_logits" (B, Q, K+1), "pred_masks" (B, Q, h, w) logits over the padded images,
                and with an ancestor head "pred_ancestors", two (B, Q, D).
            initial: B dicts with "masks" (N, *padded_size) bool, or None for images without initial labels.
            padded_size: (H, W) of the model's input.
            image_sizes: B (H, W) of the images in it, from its top left corner; areas are shares of these.
            branch_weights: of the losses on the initial and on the teacher's labels.
            photos: B images (3, H, W), in [0, 255], the teacher's views; needed if masks are refined.

        Returns:
            B dicts for `SetCriterion`, labels by descending score: "labels" (M,) zeros, int64; "masks" (M,
            *padded_size) bool, empty in the padding; "ancestors" (M, M) bool, unless the settings are "none", or
            "teacher" without an ancestor head; "label_weights" (M,) in [0, 1], under 1 for duplicates of initial
            labels; "image_weight", 0 for an image without labels from the teacher, else 1; "scores" (M,) in [0, 1].
        """
        weight = _duplicate_weight(*branch_weights)
        sides = outputs.get("pred_ancestors")
        with torch.autocast(outputs["pred_masks"].device.type, enabled=False):
            return [
                self._of_image(
                    logits,
                    masks,
                    None if sides is None else (sides[0][k], sides[1][k]),
                    initial[k],
                    padded_size,
                    image_sizes[k],
                    weight,
                    None if photos is None else photos[k],
                )
                for k, (logits, masks) in enumerate(zip(outputs["pred_logits"], outputs["pred_masks"]))
            ]

    def _of_image(
        self,
        logits: Tensor,
        masks: Tensor,
        sides: tuple[Tensor, Tensor] | None,
        initial: Target | None,
        padded_size: Size,
        image_size: Size,
        duplicate_weight: float,
        photo: Tensor | None,
    ) -> Target:
        query, scores = self._choose(logits, masks, padded_size, image_size)
        full = self._full_size(masks[query], padded_size, image_size)
        if self.refinement_radius > 0:
            assert photo is not None
            self._refine(full[:, : image_size[0], : image_size[1]], photo)
        common = intersections(full, full)
        # by descending score: the better of two masks comes first
        overlaps = ious(common, common.diagonal(), common.diagonal())
        first = first_of_each(overlaps > self.nms_threshold)
        query, scores, full, common = query[first], scores[first], full[first], common[first][:, first]

        target = {
            "labels": torch.zeros_like(query),
            "masks": full,
            "label_weights": torch.ones_like(scores),
            "image_weight": scores.new_tensor(float(len(scores) > 0)),
            "scores": scores,
        }
        if initial is not None:
            shared = intersections(full, initial["masks"])
            areas = initial["masks"].flatten(1).sum(1, dtype=torch.int32)
            duplicates = (ious(shared, common.diagonal(), areas) > self.initial_iou_threshold).any(1)
            target["label_weights"].masked_fill_(duplicates, duplicate_weight)
        if self.ancestors == "coverage" or (self.ancestors == "teacher" and sides is not None):
            target["ancestors"] = self._ancestors(query, common, sides)
        return target

    def _ancestors(self, query: Tensor, common: Tensor, sides: tuple[Tensor, Tensor] | None) -> Tensor:
        """(M, M) bool, [i, j] = label i is an ancestor of j, by the rules of `hierarchy`, on the host.

        Args:
            query: (M,) the labels' queries.
            common: (M, M) pixels that labels share; on the diagonal, their areas, over 0.
            sides: (Q, D) each, of all queries as ancestor and as descendant; needed for "teacher".
        """
        shared = common.cpu().numpy()
        areas = shared.diagonal()
        coverage = shared / areas[:, None]
        if self.ancestors == "coverage":
            parents = parents_by_coverage(coverage, areas, self.theta_cover_alone, self.max_child_area)
        else:
            assert sides is not None
            as_ancestor, as_descendant = (side[query].float() for side in sides)
            parents = parents_by_probability(
                ancestor_logits(as_ancestor, as_descendant).sigmoid().cpu().numpy(),
                areas,
                lambda k, others: coverage[k, others],
                self.ancestor_threshold,
                self.theta_cover,
                self.max_child_area,
            )
        return torch.from_numpy(ancestors_of(parents)).to(common.device)

    def _choose(self, logits: Tensor, masks: Tensor, padded_size: Size, image_size: Size) -> tuple[Tensor, Tensor]:
        """Indices of the chosen queries by descending score, and their scores; no mask is kept at full size."""
        entity = entity_probabilities(logits, masks)
        # the entity probability bounds the score: masks that cannot pass, and NaN, are not resized to full size
        query = ((entity > 0) & (entity >= self.threshold.least_score)).nonzero().flatten()
        mask_areas, mask_confidence = [query.new_zeros(0)], [entity.new_zeros(0)]
        for chunk in full_size_logits(masks[query], padded_size, image_size, image_size, self.chunk_bytes):
            _, area, sure = measure(chunk)
            mask_areas.append(area)
            mask_confidence.append(sure)
        areas, scores = torch.cat(mask_areas), entity[query] * torch.cat(mask_confidence)
        valid = (areas >= max(1, self.min_area)) & (scores > 0)
        query, areas, scores = query[valid], areas[valid], scores[valid]
        keep = self.threshold(areas / (image_size[0] * image_size[1]), scores)
        query, scores = query[keep], scores[keep]
        best = scores.argsort(descending=True, stable=True)[: self.max_labels]
        return query[best], scores[best]

    def _full_size(self, masks: Tensor, padded_size: Size, image_size: Size) -> Tensor:
        """(N, *padded_size) bool of (N, h, w) logits; the padding is empty."""
        full = torch.zeros(len(masks), *padded_size, dtype=torch.bool, device=masks.device)
        start = 0
        for chunk in full_size_logits(masks, padded_size, image_size, image_size, self.chunk_bytes):
            full[start : start + len(chunk), : image_size[0], : image_size[1]] = chunk > 0
            start += len(chunk)
        return full

    def _refine(self, masks: Tensor, photo: Tensor) -> None:
        """Move the outlines of (N, H, W) masks to the edges of their photo, in place."""
        refined = refine_masks(masks, photo, self.refinement_radius, self.refinement_epsilon, self.chunk_bytes)
        masks.copy_(torch.cat([masks[:0], *(values > 0 for values in refined)]))


def _duplicate_weight(initial: float, teacher: float) -> float:
    """Weight with which a label of both branches counts like one of the teacher's, if attainable."""
    return max(0.0, teacher - initial) / teacher if teacher > 0 else 0.0

"""Pseudo-labels from the teacher's outputs (SOHES, section 3.3, self-correction)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..modeling.ancestor_head import ancestor_logits
from ..modeling.masks import entity_probabilities, full_size_logits, measure, refine_masks
from ..structures.crops import Box, is_cut
from ..structures.hierarchy import ancestors_of, parents_by_coverage, parents_by_probability
from ..structures.nms import first_of_each, intersections, ious
from .thresholds import Threshold, build_threshold

Size = tuple[int, int]
Target = dict[str, Tensor]
Outputs = dict[str, Any]

ANCESTOR_SOURCES = ("teacher", "coverage", "none")


@dataclass(frozen=True)
class _Look:
    """The teacher's outputs for one image or one crop of it.

    Attributes:
        logits: (Q, K + 1), the last for "no entity".
        masks: (Q, h, w) logits over the model's input.
        sides: (Q, D) each, embeddings as ancestor and as descendant, or None.
        box: the part of the padded image that was resized to the model's input; None: the whole, not resized.
    """

    logits: Tensor
    masks: Tensor
    sides: tuple[Tensor, Tensor] | None
    box: Box | None = None


@dataclass
class TeacherTargets:
    """Converts confident predictions of the teacher to pseudo-labels, used in addition to the initial labels.

    A mask becomes a label if its score (see `masks`) passes a threshold that may depend on its area. Its outline
    may then be moved to the edges of the photo [D], which adds detail to the teacher's masks. Duplicates of a better
    mask are removed.

    A label that duplicates an initial one would count twice, once in each branch. So its weight is lowered such that
    both branches together give it the weight of a teacher's label [D]. It is not removed, since the teacher's branch
    would then train the student to predict no entity there.

    With crops, the score of a mask is its mean support over the looks (whole image and crops) that contain its bounding
    box: the score itself in its own look, and the largest product of score and IoU in another.

    Attributes:
        threshold: selects masks by area and score.
        initial_iou_threshold: a mask with a higher IoU with an initial label is its duplicate; in [0, 1].
        nms_threshold: of two masks with a higher IoU, the lower-scored one is removed; 1 keeps all.
        max_labels: maximum number per image, the best first.
        min_area: minimum area in pixels of the model's input.
        ancestors: "teacher": from its ancestor head; "coverage": from the masks' coverage; "none".
        ancestor_threshold, theta_cover: of "teacher", see `hierarchy.parents_by_probability`.
        theta_cover_alone: of "coverage", see `hierarchy.parents_by_coverage`.
        max_child_area: maximum share of its parent's area that a label can take, for both.
        refinement_radius, refinement_epsilon: see `refine_masks`; a radius of 0 turns refinement off.
        crop_margin: masks closer than this to a side of their crop, in pixels of the model's input, are dropped as
            cut off, unless it is also a side of the image; 0 keeps all.
        chunk_bytes: memory of the full-size logits that exist at once (at least one mask's).

    Raises:
        ValueError: a setting out of its range.
    """

    threshold: Threshold
    initial_iou_threshold: float = 0.5
    nms_threshold: float = 0.9
    max_labels: int = 200
    min_area: int = 16
    ancestors: str = "teacher"
    ancestor_threshold: float = 0.5
    theta_cover: float = 0.5
    theta_cover_alone: float = 0.9
    max_child_area: float = 0.8
    refinement_radius: int = 0
    refinement_epsilon: float = 0.01
    crop_margin: int = 4
    chunk_bytes: int = 256 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.ancestors not in ANCESTOR_SOURCES:
            raise ValueError(
                f"CORRECTION.ANCESTORS must be one of {', '.join(ANCESTOR_SOURCES)}; got {self.ancestors!r}"
            )
        if self.max_labels < 1:
            raise ValueError(f"CORRECTION.MAX_LABELS must be at least 1, got {self.max_labels}")

    @classmethod
    def from_config(cls, cfg: Any) -> TeacherTargets:
        """The settings of ``cfg.CORRECTION``, and of inference where they are the same."""
        return cls(
            threshold=build_threshold(cfg),
            initial_iou_threshold=cfg.CORRECTION.INITIAL_IOU_THRESHOLD,
            nms_threshold=cfg.CORRECTION.NMS_THRESHOLD,
            max_labels=cfg.CORRECTION.MAX_LABELS,
            min_area=cfg.CORRECTION.MIN_AREA,
            ancestors=cfg.CORRECTION.ANCESTORS,
            ancestor_threshold=cfg.MODEL.ANCESTOR_HEAD.THRESHOLD,
            theta_cover=cfg.MODEL.ANCESTOR_HEAD.THETA_COVER,
            theta_cover_alone=cfg.TEST.THETA_COVER,
            max_child_area=cfg.MODEL.ANCESTOR_HEAD.MAX_CHILD_AREA,
            refinement_radius=cfg.CORRECTION.REFINEMENT.RADIUS,
            refinement_epsilon=cfg.CORRECTION.REFINEMENT.EPSILON,
            crop_margin=cfg.TEST.CROPS.MARGIN,
            chunk_bytes=cfg.TEST.MASK_CHUNK_BYTES,
        )

    @torch.no_grad()
    def __call__(
        self,
        outputs: Outputs,
        initial: Sequence[Target | None],
        padded_size: Size,
        image_sizes: Sequence[Size],
        branch_weights: tuple[float, float],
        photos: Sequence[Tensor] | None = None,
        crops: Sequence[tuple[Box, Outputs]] = (),
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
            crops: boxes in the padded images, and the outputs for these parts, resized to the model's input.

        Returns:
            B dicts for `SetCriterion`, labels by descending score: "labels" (M,) zeros, int64; "masks" (M,
            *padded_size) bool, empty in the padding; "ancestors" (M, M) bool, unless the settings are "none", or
            "teacher" without an ancestor head; "label_weights" (M,) in [0, 1], under 1 for duplicates of initial
            labels; "image_weight", 0 for an image without labels from the teacher, else 1; "scores" (M,) in [0, 1].
        """
        initial_weight, teacher_weight = branch_weights
        # a label of both branches shall count as much as one of the teacher alone
        weight = max(0.0, teacher_weight - initial_weight) / teacher_weight if teacher_weight > 0 else 0.0
        with torch.autocast(outputs["pred_masks"].device.type, enabled=False):
            return [
                self._of_image(
                    [_look_of(outputs, k), *(_look_of(found, k, box) for box, found in crops)],
                    initial[k],
                    padded_size,
                    image_sizes[k],
                    weight,
                    None if photos is None else photos[k],
                )
                for k in range(len(image_sizes))
            ]

    def _of_image(
        self,
        looks: Sequence[_Look],
        initial: Target | None,
        padded_size: Size,
        image_size: Size,
        duplicate_weight: float,
        photo: Tensor | None,
    ) -> Target:
        look, query, scores, full = self._choose(looks, padded_size, image_size)
        if self.refinement_radius > 0:
            assert photo is not None
            inside = full[:, : image_size[0], : image_size[1]]
            refined = refine_masks(inside, photo, self.refinement_radius, self.refinement_epsilon, self.chunk_bytes)
            inside.copy_(torch.cat([inside[:0], *(values > 0 for values in refined)]))
        common = intersections(full, full)
        # by descending score: the better of two masks comes first
        overlaps = ious(common, common.diagonal(), common.diagonal())
        first = first_of_each(overlaps > self.nms_threshold)
        look, query, scores, full = look[first], query[first], scores[first], full[first]
        common = common[first][:, first]

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
        if self.ancestors == "coverage":
            target["ancestors"] = self._ancestors(common, None)
        elif self.ancestors == "teacher" and looks[0].sides is not None:
            target["ancestors"] = self._ancestors(common, self._ancestor_probabilities(looks, look, query, common))
        return target

    def _ancestors(self, common: Tensor, probabilities: Tensor | None) -> Tensor:
        """(M, M) bool, [i, j] = label i is an ancestor of j, by the rules of `hierarchy`, computed on the CPU.

        Args:
            common: (M, M) pixels that labels share; on the diagonal, their areas, at least 1.
            probabilities: (M, M) that i is an ancestor of j, needed for "teacher".
        """
        shared = common.cpu().numpy()
        areas = shared.diagonal()
        coverage = shared / areas[:, None]
        if probabilities is None:
            parents = parents_by_coverage(coverage, areas, self.theta_cover_alone, self.max_child_area)
        else:
            parents = parents_by_probability(
                probabilities.cpu().numpy(),
                areas,
                lambda k, others: coverage[k, others],
                self.ancestor_threshold,
                self.theta_cover,
                self.max_child_area,
            )
        return torch.from_numpy(ancestors_of(parents)).to(common.device)

    def _ancestor_probabilities(self, looks: Sequence[_Look], look: Tensor, query: Tensor, common: Tensor) -> Tensor:
        """(M, M) probabilities that label i is an ancestor of j: of the ancestor head within a look, else coverage.

        Only embeddings of one look can be compared. Between looks, an ancestor must cover ``theta_cover_alone``.
        """
        coverage = (common / common.diagonal()).float()  # [i, j] = share of j inside i
        probabilities = coverage.masked_fill_(coverage < self.theta_cover_alone, 0)
        for k, one in enumerate(looks):
            own = (look == k).nonzero().flatten()
            assert one.sides is not None
            as_ancestor, as_descendant = (side[query[own]].float() for side in one.sides)
            probabilities[own[:, None], own] = ancestor_logits(as_ancestor, as_descendant).sigmoid()
        return probabilities

    def _choose(
        self, looks: Sequence[_Look], padded_size: Size, image_size: Size
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The labels by descending score: (M,) looks, (M,) queries, (M,) scores and (M, *padded_size) bool masks."""
        found = [self._candidates(one, padded_size, image_size) for one in looks]
        look = torch.cat([torch.full_like(query, k) for k, (query, _, _) in enumerate(found)])
        query, areas, scores = (torch.cat(values) for values in zip(*found))
        full = None
        if len(looks) > 1:
            # with a single look, masks are resized to full size only after they are chosen
            masks = [self._full_size(one, each[0], padded_size, image_size) for one, each in zip(looks, found)]
            full = torch.cat(masks)
            boxes = _bounding_boxes(full)
            whole = (~self._are_cut(boxes, look, looks, padded_size, image_size)).nonzero().flatten()
            look, query, areas, scores, full = look[whole], query[whole], areas[whole], scores[whole], full[whole]
            scores = _support(full, (boxes[0][whole], boxes[1][whole]), scores, look, [one.box for one in looks])
        keep = self.threshold(areas / (image_size[0] * image_size[1]), scores).nonzero().flatten()
        keep = keep[scores[keep].argsort(descending=True, stable=True)[: self.max_labels]]
        look, query, scores = look[keep], query[keep], scores[keep]
        full = self._full_size(looks[0], query, padded_size, image_size) if full is None else full[keep]
        return look, query, scores, full

    def _candidates(self, look: _Look, padded_size: Size, image_size: Size) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) queries that may become labels, areas and scores; no mask is kept at full size."""
        entity = entity_probabilities(look.logits, look.masks)
        # the score in a look is at most the entity probability: masks that cannot pass by it, and NaN, are not resized
        query = ((entity > 0) & (entity >= self.threshold.least_score)).nonzero().flatten()
        mask_areas, mask_confidence = [query.new_zeros(0)], [entity.new_zeros(0)]
        for chunk in self._resized(look, query, padded_size, image_size):
            _, area, sure = measure(chunk)
            mask_areas.append(area)
            mask_confidence.append(sure)
        areas, scores = torch.cat(mask_areas), entity[query] * torch.cat(mask_confidence)
        valid = (areas >= max(1, self.min_area)) & (scores > 0)
        return query[valid], areas[valid], scores[valid]

    def _are_cut(
        self, boxes: tuple[Tensor, Tensor], look: Tensor, looks: Sequence[_Look], padded_size: Size, image_size: Size
    ) -> Tensor:
        """(N,) bool: whether masks with these bounding boxes come close to a side of their crop inside the image."""
        cut = torch.zeros_like(look, dtype=torch.bool)
        for k, one in enumerate(looks):
            if one.box is not None:
                y0, x0, y1, x1 = one.box
                height, width = padded_size
                margin = (self.crop_margin * (y1 - y0) / height, self.crop_margin * (x1 - x0) / width)
                cut |= (look == k) & is_cut(*boxes, one.box, image_size, margin)
        return cut

    def _resized(self, look: _Look, query: Tensor, padded_size: Size, image_size: Size) -> Iterator[Tensor]:
        """Chunks (n, h, w) of the logits of ``query`` at the image's resolution: the part of the look in the image."""
        masks = look.masks[query]
        if look.box is None:
            yield from full_size_logits(masks, padded_size, image_size, image_size, self.chunk_bytes)
            return
        y0, x0, y1, x1 = look.box
        for chunk in full_size_logits(masks, padded_size, padded_size, (y1 - y0, x1 - x0), self.chunk_bytes):
            yield chunk[:, : max(0, image_size[0] - y0), : max(0, image_size[1] - x0)]

    def _full_size(self, look: _Look, query: Tensor, padded_size: Size, image_size: Size) -> Tensor:
        """(N, *padded_size) bool masks of N queries of a look; empty in the padding and outside of the look."""
        full = torch.zeros(len(query), *padded_size, dtype=torch.bool, device=query.device)
        y0, x0 = (0, 0) if look.box is None else look.box[:2]
        start = 0
        for chunk in self._resized(look, query, padded_size, image_size):
            count, height, width = chunk.shape
            full[start : start + count, y0 : y0 + height, x0 : x0 + width] = chunk > 0
            start += count
        return full


def _look_of(outputs: Outputs, k: int, box: Box | None = None) -> _Look:
    """The outputs for image ``k`` of a batch."""
    sides = outputs.get("pred_ancestors")
    sides = None if sides is None else (sides[0][k], sides[1][k])
    return _Look(outputs["pred_logits"][k], outputs["pred_masks"][k], sides, box)


def _bounding_boxes(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends (exclusive), (N, 2) each, (y, x), of the bounding boxes of (N, H, W) bool masks, not empty."""
    lines = (masks.any(2).byte(), masks.any(1).byte())
    low = torch.stack([line.argmax(1) for line in lines], dim=1)
    high = torch.stack([line.shape[1] - line.flip(1).argmax(1) for line in lines], dim=1)
    return low, high


def _support(
    masks: Tensor, bounds: tuple[Tensor, Tensor], scores: Tensor, look: Tensor, boxes: Sequence[Box | None]
) -> Tensor:
    """(N,) mean support of masks over the looks that contain them, see `TeacherTargets`.

    A look supports a mask only by its own candidates, whose entity probability reaches the lowest threshold.

    Args:
        masks: (N, H, W) bool, not empty.
        bounds: their bounding boxes, see `_bounding_boxes`.
        scores: (N,).
        look: (N,) index of each mask's look.
        boxes: of the looks.
    """
    common = intersections(masks, masks)
    agreement = ious(common, common.diagonal(), common.diagonal()) * scores  # [i, j]: support of i by j
    low, high = bounds
    total, count = scores.clone(), torch.ones_like(scores)
    for k, box in enumerate(boxes):
        sees = look != k
        if box is not None:
            sees &= (low >= low.new_tensor(box[:2])).all(1) & (high <= high.new_tensor(box[2:])).all(1)
        others = agreement[:, look == k]
        if others.numel():
            total += torch.where(sees, others.amax(1), 0)
        count += sees
    return total / count

"""Post-processing: from the decoder's outputs to the masks and the forest of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.structures import Boxes, Instances

from ..structures.forest import Forest
from ..structures.instance_fields import RLEMasks, encode_tensor
from ..structures.masks import RLE, coverage_matrix, encode_masks, mask_areas, mask_boxes
from ..structures.nms import without_duplicates
from ..structures.score_calibration import Knots, calibrated
from .ancestor_head import ancestor_logits
from .masks import entity_probabilities, full_size_logits, measure, refine_masks, resize

SOURCE = "model"


@dataclass(frozen=True)
class FoundMasks:
    """Predictions for an image or a crop of it; with TTA, fused over the transforms.

    Attributes:
        rles: N masks of the image's size.
        scores: (N,) in [0, 1], on the CPU, not calibrated.
        ancestors: (N, D) each, embeddings as ancestor and as descendant, or None without an ancestor head.
    """

    rles: list[RLE]
    scores: Tensor
    ancestors: tuple[Tensor, Tensor] | None

    def placed(self, kept: Tensor, rles: list[RLE]) -> FoundMasks:
        """Select the masks ``kept``, with new ``rles`` in another image."""
        ancestors = self.ancestors
        if ancestors is not None:
            ancestors = (ancestors[0][kept.to(ancestors[0].device)], ancestors[1][kept.to(ancestors[1].device)])
        return FoundMasks(rles, self.scores[kept], ancestors)


@dataclass(frozen=True)
class EntityInference:
    """Selects queries, resizes their masks to full size in chunks, and decodes the hierarchy.

    Attributes:
        max_masks: maximum number of masks per image, the best first.
        min_score: masks with a lower calibrated score are removed; in [0, 1].
        calibration: knots of the score calibration, see `calibrated`; empty: none.
        nms_threshold: of two masks with a higher IoU, the lower-scored one is removed; 1 keeps all.
        ancestor_threshold: minimum probability of an ancestor-descendant pair.
        theta_cover: minimum share of the descendant that the ancestor's mask must cover; 0: no condition.
        theta_cover_alone: coverage threshold of the hierarchy without an ancestor head, and between masks of different
            crops.
        max_child_area: maximum area of a mask as a share of its parent's; larger masks become siblings.
        refinement_radius: maximum shift of outlines to the photo's edges, in pixels of the model's input; 0: no
            refinement.
        refinement_epsilon: see `refine_masks`.
        chunk_bytes: memory of the full-size logits that exist at once (at least one mask's).
    """

    max_masks: int = 1000
    min_score: float = 0.0
    calibration: Knots = ()
    nms_threshold: float = 1.0
    ancestor_threshold: float = 0.5
    theta_cover: float = 0.5
    theta_cover_alone: float = 0.9
    max_child_area: float = 0.8
    refinement_radius: int = 0
    refinement_epsilon: float = 0.01
    chunk_bytes: int = 256 * 1024 * 1024

    def find(
        self,
        logits: Tensor,
        masks: Tensor,
        ancestors: tuple[Tensor, Tensor] | None,
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
        photo: Tensor | None = None,
    ) -> FoundMasks:
        """The masks of one image, or of one crop of an image.

        A mask's score is as in Mask2Former, see `sohes_d2.modeling.masks`; refinement does not change it.

        Args:
            logits: (Q, K + 1), the last for "no entity".
            masks: (Q, h, w) logits at the decoder's resolution, over the padded image.
            ancestors: (Q, D) each, embeddings as ancestor and as descendant, or None.
            padded_size: (H, W) of the model's input.
            image_size: (H, W) of the image in it, from its top left corner.
            output_size: (H, W) of the original image.
            photo: (3, H, W) of image_size, in [0, 255]; needed if masks are refined.
        """
        entity = entity_probabilities(logits, masks)
        entity, query = entity.topk(min(self.max_masks, len(entity)))
        entity = entity.cpu()
        # the entity probability is an upper bound of the score
        reachable = (entity > 0) & (self._calibrated(entity) >= self.min_score)
        entity, query = entity[reachable], query[reachable.to(query.device)]
        rles, mask_confidence = self._full_size(masks[query], padded_size, image_size, output_size, photo)
        embeddings = None if ancestors is None else (ancestors[0][query], ancestors[1][query])
        return FoundMasks(rles, entity * mask_confidence, embeddings)

    def combine(
        self, found: Sequence[FoundMasks], output_size: tuple[int, int], nms_threshold: float = 1.0
    ) -> dict[str, Any]:
        """Merge the masks of an image, or of several crops of it.

        The ancestor head compares masks of the same crop. Between masks of different crops an ancestor must cover at
        least ``theta_cover_alone`` of the descendant.

        Args:
            found: results of `find`, with RLEs of ``output_size``.
            output_size: (H, W) of the image.
            nms_threshold: used instead of the attribute if it is lower.

        Returns:
            ``instances``: `Instances` of ``output_size`` by descending score, with pred_masks (`RLEMasks`), pred_boxes,
                scores, pred_classes (0), on the CPU;
            ``forest``: the same masks and scores as a `Forest`;
            ``ancestor_probabilities``: (N, N) of the same masks, if there are ``ancestors``.
        """
        rles = [rle for one in found for rle in one.rles]
        scores = torch.cat([one.scores for one in found])
        keep = self._choose(rles, scores, min(self.nms_threshold, nms_threshold))[: self.max_masks]
        rles, scores = [rles[k] for k in keep.tolist()], self._calibrated(scores[keep])

        result: dict[str, Any] = {"instances": _instances(rles, scores, output_size)}
        fields: dict[str, Any] = {"scores": scores.numpy(), "sources": [SOURCE] * len(rles)}
        embeddings = [one.ancestors for one in found if one.ancestors is not None]
        if len(embeddings) < len(found):
            result["forest"] = Forest.from_masks(
                rles, output_size, self.theta_cover_alone, self.max_child_area, **fields
            )
            return result
        crop = torch.cat([torch.full((len(one.rles),), k) for k, one in enumerate(found)])[keep]
        probabilities = _between_crops(rles, crop.numpy(), self.theta_cover_alone)
        start = 0
        for k, (one, ancestors) in enumerate(zip(found, embeddings)):
            places = torch.nonzero(crop == k).flatten()
            within = (keep[places] - start).to(ancestors[0].device)
            as_ancestor, as_descendant = (embedding[within].float() for embedding in ancestors)
            block = ancestor_logits(as_ancestor, as_descendant).sigmoid().fill_diagonal_(0).cpu()
            probabilities[places[:, None], places] = block
            start += len(one.rles)
        result["ancestor_probabilities"] = probabilities
        result["forest"] = Forest.from_probabilities(
            rles,
            probabilities.numpy(),
            output_size,
            self.ancestor_threshold,
            self.theta_cover,
            self.max_child_area,
            **fields,
        )
        return result

    def _calibrated(self, scores: Tensor) -> Tensor:
        """(N,) float32 scores on the CPU, calibrated."""
        return torch.from_numpy(calibrated(scores.numpy(), self.calibration)).float()

    def _full_size(
        self,
        masks: Tensor,
        padded_size: tuple[int, int],
        image_size: tuple[int, int],
        output_size: tuple[int, int],
        photo: Tensor | None,
    ) -> tuple[list[RLE], Tensor]:
        """RLEs of ``output_size`` of (N, h, w) logits, and (N,) mean probabilities inside; 0 for an empty mask."""
        rles: list[RLE] = []
        mask_confidence = [torch.zeros(0)]
        refines = self.refinement_radius > 0
        size = image_size if refines else output_size
        for chunk in full_size_logits(masks, padded_size, image_size, size, self.chunk_bytes):
            inside, _, confidence = measure(chunk)
            mask_confidence.append(confidence.cpu())
            if refines:
                assert photo is not None
                refined = refine_masks(inside, photo, self.refinement_radius, self.refinement_epsilon, self.chunk_bytes)
                inside = torch.cat([resize(values, output_size) > 0 for values in refined])
            rles += encode_tensor(inside)
        return rles, torch.cat(mask_confidence)

    def _choose(self, rles: list[RLE], scores: Tensor, nms_threshold: float) -> Tensor:
        """Indices, by descending score, of masks that are not empty, below ``min_score`` or duplicates."""
        # refinement may empty a mask that has a score
        filled = torch.from_numpy(mask_areas(rles) > 0)
        kept = torch.nonzero(filled & (scores > 0) & (self._calibrated(scores) >= self.min_score)).flatten()
        # sorted by raw scores, since calibration can make nearly equal scores equal in float32
        if nms_threshold < 1:
            chosen = without_duplicates([rles[k] for k in kept.tolist()], scores[kept].numpy(), nms_threshold)
            return kept[torch.from_numpy(chosen)]
        return kept[scores[kept].argsort(descending=True, stable=True)]


def _between_crops(rles: list[RLE], crop: np.ndarray, theta_cover: float) -> Tensor:
    """(N, N) float32: the share of mask j that mask i of another crop covers, if at least ``theta_cover``; else 0."""
    covered = np.zeros((len(rles), len(rles)), np.float32)
    if len(np.unique(crop)) > 1:
        areas, boxes = mask_areas(rles), mask_boxes(rles)
        ends = boxes[:, :2] + boxes[:, 2:]
        for k in range(len(rles)):
            shared = np.minimum(ends[k], ends) - np.maximum(boxes[k, :2], boxes[:, :2])
            possible = (crop != crop[k]) & (areas > areas[k])
            possible &= np.prod(np.maximum(shared, 0), axis=1) >= theta_cover * areas[k]
            above = np.flatnonzero(possible)
            share = coverage_matrix([rles[k]], [rles[j] for j in above])[0]
            covered[above, k] = np.where(share >= theta_cover, share, 0)
    return torch.from_numpy(covered)


def _instances(rles: list[RLE], scores: Tensor, size: tuple[int, int]) -> Instances:
    boxes = torch.from_numpy(mask_boxes(rles)).float()
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances(size)
    instances.pred_masks = RLEMasks(rles, size)
    instances.pred_boxes = Boxes(boxes)
    instances.scores = scores
    instances.pred_classes = torch.zeros(len(rles), dtype=torch.int64)
    return instances


def predicted_forest(output: Mapping[str, Any], image_size: tuple[int, int]) -> Forest:
    """The forest of a model's output for one image; without a predicted hierarchy, from the coverage of the masks.

    Args:
        output: has "forest", or "instances" with ``pred_masks`` ((N, H, W) tensor) and ``scores``.
        image_size: (H, W).
    """
    if "forest" in output:
        return output["forest"]
    instances = output["instances"]
    masks = encode_masks(torch.as_tensor(instances.pred_masks).cpu())
    return Forest.from_masks(masks, image_size, scores=instances.scores.detach().cpu().numpy())

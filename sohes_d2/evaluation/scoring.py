"""All metrics of predictions against ground truth, for the command line and the Detectron2 evaluator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..labels.reader import group_by_image
from .backends import AUTO
from .detection_metrics import MAX_DETS, evaluate_detections
from .forest_metrics import ForestMetrics
from .ground_truth import GroundTruth, predicted_forest
from .tables import detection_table, forest_table


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes:
        results: task -> metric -> value in percent; tasks are "segm", "bbox" and, if both sides have a hierarchy,
            "forest". Flattened with "/" (``segm/AR@1000``) these are the stable names.
        depth_confusion: see `ForestMetrics`, or None without a hierarchy.
    """

    results: OrderedDict[str, dict[str, float]]
    depth_confusion: np.ndarray | None = None

    def table(self) -> str:
        """All metrics as text."""
        text = detection_table({task: m for task, m in self.results.items() if task != "forest"})
        if self.depth_confusion is not None:
            text += "\n\n" + forest_table(self.results["forest"], self.depth_confusion)
        return text


def evaluate(
    truth: GroundTruth,
    predictions: Sequence[dict[str, Any]],
    source: str,
    iou_types: Iterable[str] = ("segm", "bbox"),
    max_dets: Sequence[int] = MAX_DETS,
    backend: str = AUTO,
    hierarchy: bool = True,
) -> Evaluation:
    """Score validated predictions.

    Args:
        truth: the ground truth.
        predictions: with ``image_id`` of the ground truth, ``score``, ``segmentation`` (compressed RLE) and/or
            ``bbox``, and optionally ``id``, ``parent_id``, ``ancestor_scores``.
        source: origin of the predictions, for messages.
        iou_types: "segm", "bbox" or both.
        max_dets: see `evaluate_detections`.
        backend: see `evaluate_detections`.
        hierarchy: whether to score the forests, if both sides have them.

    Raises:
        InputError: ground truth without masks or boxes for ``iou_types``, or an invalid hierarchy.
    """
    results: OrderedDict[str, dict[str, float]] = OrderedDict()
    for iou_type in iou_types:
        results[iou_type] = evaluate_detections(
            truth.images.values(), truth.records(iou_type), predictions, iou_type, max_dets, backend
        )
    has_parents = truth.has_hierarchy and any("parent_id" in p for p in predictions)
    has_masks = truth.has_masks and any("segmentation" in p for p in predictions)
    if not (hierarchy and has_parents and has_masks):
        return Evaluation(results)
    metrics = ForestMetrics()
    predicted = group_by_image(predictions, truth.images)
    for image_id, true_forest in truth.forests().items():
        where = f"{source}: image {truth.images[image_id].get('file_name', image_id)!r}"
        metrics.add(true_forest, *predicted_forest(predicted[image_id], truth.size(image_id), where))
    results["forest"] = metrics.compute()
    return Evaluation(results, metrics.depth_confusion)

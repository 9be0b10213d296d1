"""All metrics of predictions against ground truth, and their text tables, for the commands and the evaluator."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from ..labels.reader import group_by_image
from .detection_metrics import AUTO, MAX_DETS, SIZES, evaluate_detections
from .forest_metrics import MEASURES, SCOPES, ForestMetrics
from .ground_truth import GroundTruth, predicted_forest
from .significance import LEVEL, Difference


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


def detection_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Table of ``{"segm": metrics, "bbox": metrics}``: a row per task and size, a column per metric, in percent."""
    columns = list(dict.fromkeys(name for metrics in results.values() for name in metrics if "-" not in name))
    rows = []
    for task, metrics in results.items():
        for size in SIZES:
            suffix = "" if size == "all" else f"-{size}"
            rows.append([task, size, *(_cell(metrics, column + suffix) for column in columns)])
    return _table(rows, ["", "size", *columns])


def difference_table(results: Mapping[str, Mapping[str, Difference]]) -> str:
    """Table of ``{"segm": differences, "bbox": differences}``: a row per metric, in percent."""
    rows = []
    for task, differences in results.items():
        for name, d in differences.items():
            gain, interval = f"{d.after - d.before:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}"
            rows.append([task, name, f"{d.before:.2f}", f"{d.after:.2f}", gain, interval])
    return _table(rows, ["", "metric", "before", "after", "difference", f"{LEVEL:.0%} interval"])


def forest_table(metrics: Mapping[str, float], depth_confusion: np.ndarray) -> str:
    """Tables of the hierarchy metrics and of the depth of true masks (rows) by predicted depth (columns)."""
    rows = []
    for relation in ("ancestor", "parent"):
        for scope in SCOPES:
            for ious, suffix in (("0.50:0.95", ""), ("0.50", "-50")):
                suffix = f"-{scope}{suffix}" if scope else suffix
                values = [_cell(metrics, f"{relation}_{measure}{suffix}") for measure in MEASURES]
                rows.append([relation, scope or "end to end", ious, *values])
    depths = len(depth_confusion) - 1
    names = [f"depth {d}{'+' if d == depths - 1 else ''}" for d in range(depths)]
    confusion = tabulate(
        [[name, *row] for name, row in zip([*names, "not true"], depth_confusion.tolist())],
        headers=["true \\ predicted (IoU 0.50)", *names, "not found"],
        tablefmt="pipe",
    )
    return f"{_table(rows, ['relation', 'over', 'IoU', *MEASURES])}\n\n{confusion}"


def flat_metrics(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Flatten ``{"segm": {"AR@1000": 61.5}}`` to ``{"segm/AR@1000": 61.5}``, None for NaN; a `Difference` becomes its
    gain and the bounds of its interval."""
    flat: dict[str, Any] = {}
    for task, metrics in results.items():
        for name, value in metrics.items():
            key = f"{task}/{name}"
            if isinstance(value, Difference):
                gain = value.after - value.before
                flat.update({f"{key}/gain": gain, f"{key}/gain-low": value.low, f"{key}/gain-high": value.high})
            else:
                flat[key] = value
    return {key: None if value != value else value for key, value in flat.items()}  # json has no NaN


def _cell(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.2f}" if name in metrics else ""


def _table(rows: list[list[str]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, stralign="right")

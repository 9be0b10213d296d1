"""Significance of differences in recall: paired bootstrap over images (Efron and Tibshirani, 1993)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..labels.reader import group_by_image
from .detection_metrics import AUTO, MAX_DETS, SIZES, evaluate_detections

LEVEL = 0.95
_BATCH = 1 << 22  # number of drawn images, over all samples, that are in memory at once


@dataclass(frozen=True)
class Difference:
    """Recall of two sets of predictions, in percent.

    Attributes:
        before, after: average recall of the first and of the second set.
        low, high: bounds of the 95% confidence interval of ``after - before`` over the sampling of images. NaN if
            fewer than two images have entities.
    """

    before: float
    after: float
    low: float
    high: float


def recall_differences(
    images: Iterable[Mapping[str, Any]],
    truths: Iterable[dict[str, Any]],
    before: Iterable[dict[str, Any]],
    after: Iterable[dict[str, Any]],
    iou_type: str = "segm",
    max_dets: Sequence[int] = MAX_DETS,
    backend: str = AUTO,
    samples: int = 9999,
    seed: int = 0,
) -> dict[str, Difference]:
    """Difference in recall between two sets of predictions, with confidence intervals.

    Recall over all images is the mean over images, weighted by their numbers of entities; images are drawn with
    replacement, each with both predictions. The interval does not include the variance between training runs.

    Args:
        images, truths, iou_type, max_dets, backend: see `evaluate_detections`.
        before, after: two sets of detections of the same images, in the same form.
        samples: number of bootstrap samples.
        seed: seed of the draws.

    Returns:
        The difference for each ``AR@M`` and ``AR@M-small``, ``-medium``, ``-large`` of `evaluate_detections`, without
        metrics that have no ground truth.
    """
    records = {image["id"]: image for image in images}
    truths_of, before_of, after_of = (group_by_image(list(part), records) for part in (truths, before, after))
    recalls: dict[str, list[tuple[float, float, int]]] = {}
    for key, image in records.items():
        metrics = [
            evaluate_detections([image], truths_of[key], found[key], iou_type, max_dets, backend)
            for found in (before_of, after_of)
        ]
        counts = _entities_by_size(truths_of[key])
        for name in metrics[0]:
            size = name.partition("-")[2] or "all"
            if name.startswith("AR@") and counts[size]:
                recalls.setdefault(name, []).append((metrics[0][name], metrics[1][name], counts[size]))
    order = [f"AR@{m}{suffix}" for suffix in ("", *(f"-{s}" for s in SIZES[1:])) for m in sorted(set(max_dets))]
    return {name: _difference(np.array(recalls[name]), samples, seed) for name in order if name in recalls}


def _entities_by_size(truths: Iterable[dict[str, Any]]) -> dict[str, int]:
    """Number of entities of each of `SIZES`; as in COCO's code, areas of exactly 32^2 and 96^2 pixels count twice."""
    areas = np.array([t["area"] for t in truths if not t.get("iscrowd")])
    edges = {"all": (0, 1e5**2), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e5**2)}
    return {size: int(((areas >= low) & (areas <= high)).sum()) for size, (low, high) in edges.items()}


def _difference(recalls: np.ndarray, samples: int, seed: int) -> Difference:
    """The difference over N images, from ``recalls`` (N, 3): recall before, recall after and number of entities."""
    from scipy.stats import bootstrap  # takes a second to import, so it is not imported for training

    before, after, counts = recalls.T
    low = high = float("nan")
    if len(recalls) > 1:
        interval = bootstrap(
            ((after - before) * counts, counts),
            lambda gains, weights, axis: gains.sum(axis) / weights.sum(axis),
            n_resamples=samples,
            batch=max(1, _BATCH // len(recalls)),
            paired=True,
            vectorized=True,
            confidence_level=LEVEL,
            method="percentile",
            random_state=np.random.default_rng(seed),
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    before, after = (float(np.average(values, weights=counts)) for values in (before, after))
    return Difference(before, after, low, high)

"""Class-agnostic average recall and precision of masks and boxes, under stable names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..structures.masks import mask_areas
from .backends import AUTO, match_and_accumulate, resolve_backend

MAX_DETS = (1, 10, 100, 1000)
SIZES = ("all", "small", "medium", "large")  # COCO: areas to 32^2, 32^2 to 96^2, from 96^2 pixels


def evaluate_detections(
    images: Iterable[Mapping[str, Any]],
    truths: Iterable[dict[str, Any]],
    detections: Iterable[dict[str, Any]],
    iou_type: str = "segm",
    max_dets: Sequence[int] = MAX_DETS,
    backend: str = AUTO,
) -> dict[str, float]:
    """Class-agnostic AR and AP (COCO's evaluation with ``useCats=0``).

    Areas are as in COCO's tools: for true masks ``area`` of the annotation, for predicted masks the number of pixels,
    for predicted boxes width x height. Crowd regions count neither as found nor as missed, and predictions on them are
    ignored.

    Args:
        images: COCO images with ``id``, ``height``, ``width``, also those without annotations or detections.
        truths: COCO annotations of these images, of any classes: ``image_id``, ``area`` and, by ``iou_type``,
            ``segmentation`` (compressed RLE) or ``bbox`` (x, y, width, height); ``iscrowd`` and ``category_id`` if any.
        detections: ``image_id``, ``score`` and ``segmentation`` or ``bbox``; those without are skipped. Equal scores
            keep their order.
        iou_type: "segm" or "bbox".
        max_dets: limits of detections per image, best scores first; AP and AP by size use the largest.
        backend: "auto", "pycocotools" or "faster-coco-eval".

    Returns:
        In percent: ``AR@M`` for M in ``max_dets``, ``AP`` (IoU 0.50:0.95), ``AP50``, ``AP75``; ``AR@M-small``,
        ``-medium``, ``-large`` for each M, ``AP-small``, ``-medium``, ``-large``. NaN without ground truth.

    Raises:
        ValueError: an unknown ``iou_type`` or backend, or ``max_dets`` that are not positive.
    """
    if iou_type not in ("segm", "bbox"):
        raise ValueError(f"iou_type must be 'segm' or 'bbox', got {iou_type!r}")
    max_dets = sorted(set(max_dets))
    if not max_dets or max_dets[0] < 1:
        raise ValueError(f"max_dets must be positive integers, got {max_dets}")
    backend = resolve_backend(backend)
    images = sorted(images, key=lambda image: (str(type(image["id"])), image["id"]))
    new_ids = {image["id"]: k + 1 for k, image in enumerate(images)}  # image ids may be strings
    precision, recall = match_and_accumulate(
        [{"id": new_ids[i["id"]], "height": i["height"], "width": i["width"]} for i in images],
        # COCO's code processes true masks class by class, and the last of two equal overlaps wins.
        _records(sorted(truths, key=lambda t: t.get("category_id", 1)), new_ids, iou_type),
        _records(detections, new_ids, iou_type, predicted=True),
        iou_type,
        max_dets,
        backend,
    )
    return summarize(precision, recall, max_dets)


def summarize(precision: np.ndarray, recall: np.ndarray, max_dets: Sequence[int]) -> dict[str, float]:
    """Average the arrays of `match_and_accumulate` to the metrics of `evaluate_detections`."""
    metrics = {f"AR@{m}": _percent(recall[:, 0, k]) for k, m in enumerate(max_dets)}
    metrics["AP"] = _percent(precision[:, :, 0, -1])
    metrics["AP50"] = _percent(precision[0, :, 0, -1])
    metrics["AP75"] = _percent(precision[5, :, 0, -1])
    for a, size in enumerate(SIZES[1:], start=1):
        for k, m in enumerate(max_dets):
            metrics[f"AR@{m}-{size}"] = _percent(recall[:, a, k])
        metrics[f"AP-{size}"] = _percent(precision[:, :, a, -1])
    return metrics


def _percent(values: np.ndarray) -> float:
    defined = values[values > -1]
    return 100 * float(defined.mean()) if defined.size else float("nan")


def _records(
    annotations: Iterable[dict[str, Any]], new_ids: dict[Any, int], iou_type: str, predicted: bool = False
) -> list[dict[str, Any]]:
    """Records with only the evaluated fields, so that classes and other fields of the file have no effect."""
    key = "segmentation" if iou_type == "segm" else "bbox"
    annotations = [annotation for annotation in annotations if key in annotation]
    if predicted and iou_type == "segm":
        areas = mask_areas([a["segmentation"] for a in annotations]).tolist()
    elif predicted:
        areas = [a["bbox"][2] * a["bbox"][3] for a in annotations]
    else:
        areas = [a["area"] for a in annotations]
    records = []
    for k, (annotation, area) in enumerate(zip(annotations, areas)):
        record = {
            "id": k + 1,
            "image_id": new_ids[annotation["image_id"]],
            "category_id": 1,
            "iscrowd": int(annotation.get("iscrowd") or 0),
            "area": float(area),
            key: annotation[key],
        }
        if predicted:
            record.update(score=float(annotation["score"]), iscrowd=0)
        records.append(record)
    return records

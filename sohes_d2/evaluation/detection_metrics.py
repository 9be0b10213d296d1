"""Class-agnostic average recall and precision of masks and boxes, under stable names.

Detections are matched to ground truth by pycocotools (the reference) or faster-coco-eval, with identical results.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..structures.masks import mask_areas, reference_evaluation

REFERENCE = "pycocotools"
FAST = "faster-coco-eval"
AUTO = "auto"
BACKENDS = (REFERENCE, FAST)

MAX_DETS = (1, 10, 100, 1000)
SIZES = ("all", "small", "medium", "large")  # COCO: areas to 32^2, 32^2 to 96^2, from 96^2 pixels


def resolve_backend(name: str = AUTO) -> str:
    """The backend to use; ``auto`` selects faster-coco-eval if it is installed.

    Raises:
        ValueError: an unknown name, or a package that is not installed.
    """
    installed = importlib.util.find_spec("faster_coco_eval") is not None
    if name == AUTO:
        return FAST if installed else REFERENCE
    if name not in BACKENDS:
        raise InputError(f"unknown evaluation backend {name!r}; choose from {', '.join((AUTO, *BACKENDS))}")
    if name == FAST and not installed:
        raise InputError(f"{FAST} is not installed; `pip install {FAST}`, or choose {REFERENCE}")
    return name


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
    precision, recall = _match_and_accumulate(
        [{"id": new_ids[i["id"]], "height": i["height"], "width": i["width"]} for i in images],
        # COCO's code processes true masks class by class, and the last of two equal overlaps wins.
        _records(sorted(truths, key=lambda t: t.get("category_id", 1)), new_ids, iou_type),
        _records(detections, new_ids, iou_type, predicted=True),
        iou_type,
        max_dets,
        backend,
    )
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


def _match_and_accumulate(
    images: list[dict[str, Any]],
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    iou_type: str,
    max_dets: Sequence[int],
    backend: str,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching, class-agnostic, for IoU 0.50:0.05:0.95.

    Args:
        images: COCO images with positive integer ids.
        truths: with ``id`` > 0, since COCO's code treats a match to annotation 0 as none.
        detections: the same with ``score``.

    Returns:
        precision (10, 101, 4, M), by IoU threshold, recall level, size (all, small, medium, large) and ``max_dets``;
        recall (10, 4, M). In [0, 1], -1 without ground truth.
    """
    if backend == FAST:
        from faster_coco_eval import COCO, COCOeval_faster

        # faster-coco-eval logs every step at info level
        silent = {"print_function": logging.getLogger(__name__).debug}
        evaluation_class = COCOeval_faster
    else:
        silent = {}
        COCO, evaluation_class = reference_evaluation()

    def index(annotations: list[dict[str, Any]]) -> Any:
        coco = COCO()
        coco.dataset = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "entity"}],
        }
        coco.createIndex()
        return coco

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        # pycocotools creates mask arrays in a way that numpy 2 deprecates
        warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
        evaluation = evaluation_class(index(truths), index(detections), iou_type, **silent)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(max_dets)
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = (np.asarray(evaluation.eval[name], np.float64) for name in ("precision", "recall"))
    return precision.reshape(10, 101, 4, len(max_dets)), recall.reshape(10, 4, len(max_dets))


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

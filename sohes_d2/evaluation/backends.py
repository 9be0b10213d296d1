"""Backends that match detections to ground truth: pycocotools (reference) and faster-coco-eval."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..structures.masks import reference_evaluation

REFERENCE = "pycocotools"
FAST = "faster-coco-eval"
AUTO = "auto"
BACKENDS = (REFERENCE, FAST)


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


def match_and_accumulate(
    images: Sequence[dict[str, Any]],
    truths: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    iou_type: str,
    max_dets: Sequence[int],
    backend: str,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching, class-agnostic, for IoU 0.50:0.05:0.95.

    Both backends get the same records and give identical results.

    Args:
        images: COCO images (``id``, ``height``, ``width``) with positive integer ids.
        truths: COCO annotations with ``id`` > 0 (COCO's code treats a match to annotation 0 as none), ``image_id``,
            ``category_id`` 1, ``iscrowd``, ``area`` and, by ``iou_type``, ``segmentation`` (compressed RLE) or
            ``bbox`` (x, y, width, height).
        detections: the same with ``score``. Equal scores keep their order.
        iou_type: "segm" or "bbox".
        max_dets: numbers of detections per image, ascending.
        backend: one of `BACKENDS`.

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
            "images": list(images),
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
    return _without_classes(evaluation.eval, len(max_dets))


def _without_classes(result: dict[str, Any], max_dets: int) -> tuple[np.ndarray, np.ndarray]:
    precision = np.asarray(result["precision"], np.float64).reshape(10, 101, 4, max_dets)
    recall = np.asarray(result["recall"], np.float64).reshape(10, 4, max_dets)
    return precision, recall

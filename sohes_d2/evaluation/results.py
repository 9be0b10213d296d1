"""The file evaluation.json with the results of the last evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import get_detection_dataset_dicts
from detectron2.utils import comm

from ..errors import InputError
from ..structures.files import write_json

EVALUATION_FILE = "evaluation.json"
_IMAGES = "images"  # key of the evaluator's counts of images, among the tasks


def write_evaluation(
    output_dir: str, datasets: Sequence[str], results: Mapping[str, Any], iteration: int | None, weights: str = ""
) -> None:
    """Write ``evaluation.json`` atomically, on the main process.

    Content: ``{"iteration": 20000, "weights": "", "unreadable_images": {data set: 0}, "results": {data set: {"segm":
    {"AR@1000": 61.5}}}}``, numbers in percent, null if undefined.

    Args:
        output_dir: an existing folder.
        datasets: ``DATASETS.TEST``.
        results: result of `DefaultTrainer.test`, which omits the name of a single data set.
        iteration: number of training iterations of the model; None if unknown.
        weights: file of the model, outside of training.
    """
    if not comm.is_main_process() or not datasets:
        return
    by_dataset = _by_dataset(datasets, results)
    content = {
        "iteration": iteration,
        "weights": weights,
        "unreadable_images": {
            name: int(found.get(_IMAGES, {}).get("unreadable", 0)) for name, found in by_dataset.items()
        },
        "results": {
            name: {task: _without_nan(values) for task, values in found.items() if task != _IMAGES}
            for name, found in by_dataset.items()
        },
    }
    write_json(os.path.join(output_dir, EVALUATION_FILE), content)


def check_readable(datasets: Sequence[str], results: Mapping[str, Any], limit: float) -> None:
    """Reject results with too many unreadable images, which were scored as blank.

    Args:
        datasets, results: see `write_evaluation`; results are empty on all processes but the main one.
        limit: TEST.MAX_UNREADABLE, a share of the images.

    Raises:
        InputError: a data set exceeds the limit; the message names it.
    """
    for name, found in _by_dataset(datasets, results).items():
        images = found.get(_IMAGES, {})
        _check_share(name, int(images.get("unreadable", 0)), images.get("unreadable-share", 0.0), limit)


def check_files(datasets: Sequence[str], limit: float) -> None:
    """Reject data sets with too many missing image files, before the evaluation.

    Raises:
        InputError: see `check_readable`.
    """
    for name in datasets:
        files = [record["file_name"] for record in get_detection_dataset_dicts(name, filter_empty=False)]
        missing = [file for file in files if not os.path.isfile(file)]
        _check_share(name, len(missing), len(missing) / max(1, len(files)), limit, *missing[:1])


def _check_share(name: str, count: int, share: float, limit: float, example: str = "") -> None:
    if share > limit:
        such = f", for example {example!r}" if example else ", listed above"
        raise InputError(
            f"{count} images ({share:.0%}) of the data set {name!r} cannot be read{such}, and would be scored as "
            f"blank; check the folder of its images, or raise TEST.MAX_UNREADABLE ({limit:g})"
        )


def _by_dataset(datasets: Sequence[str], results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Results by data set; Detectron2 omits the name of a single data set."""
    return {datasets[0]: results} if len(datasets) == 1 else results if datasets else {}


def defined_only(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without undefined ones (such as no large object in the data set), which cannot be plotted."""
    inner = {key: defined_only(value) if isinstance(value, Mapping) else value for key, value in results.items()}
    return {key: value for key, value in inner.items() if isinstance(value, dict) or math.isfinite(float(value))}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None

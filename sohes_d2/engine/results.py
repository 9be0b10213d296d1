"""The file of the last evaluation."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.utils import comm

from ..structures.files import write_json

EVALUATION_FILE = "evaluation.json"


def write_evaluation(
    output_dir: str, datasets: Sequence[str], results: Mapping[str, Any], iteration: int | None, weights: str = ""
) -> None:
    """Write ``evaluation.json`` on the main process, as a whole.

    It reads ``{"iteration": 20000, "weights": "", "results": {data set: {"segm": {"AR@1000": 61.5}}}}``, numbers in
    percent, null where undefined.

    Args:
        output_dir: an existing folder.
        datasets: ``DATASETS.TEST``.
        results: what `DefaultTrainer.test` gave, which for a single data set leaves out its name.
        iteration: number of iterations that the model was trained for; None where that is not known.
        weights: file that the model was loaded from, outside of training.
    """
    if not comm.is_main_process() or not datasets:
        return
    by_dataset = results if len(datasets) > 1 else {datasets[0]: results}
    content = {"iteration": iteration, "weights": weights, "results": _without_nan(by_dataset)}
    write_json(os.path.join(output_dir, EVALUATION_FILE), content)


def defined_only(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results without those that are undefined (no large object in the data set), which a curve cannot show."""
    inner = {key: defined_only(value) if isinstance(value, Mapping) else value for key, value in results.items()}
    return {key: value for key, value in inner.items() if isinstance(value, dict) or math.isfinite(float(value))}


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None

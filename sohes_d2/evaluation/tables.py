"""Metrics as text tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from tabulate import tabulate

from .detection_metrics import SIZES
from .forest_metrics import MEASURES, SCOPES
from .significance import LEVEL, Difference


def detection_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Table of ``{"segm": metrics, "bbox": metrics}``: a row per task and size, a column per metric, in percent."""
    columns = list(dict.fromkeys(name for metrics in results.values() for name in metrics if "-" not in name))
    rows = []
    for task, metrics in results.items():
        for size in SIZES:
            suffix = "" if size == "all" else f"-{size}"
            rows.append([task, size, *(_cell(metrics, column + suffix) for column in columns)])
    return tabulate(rows, headers=["", "size", *columns], tablefmt="pipe", disable_numparse=True, stralign="right")


def difference_table(results: Mapping[str, Mapping[str, Difference]]) -> str:
    """Table of ``{"segm": differences, "bbox": differences}``: a row per metric, in percent."""
    rows = []
    for task, differences in results.items():
        for name, d in differences.items():
            gain, interval = f"{d.after - d.before:+.2f}", f"{d.low:+.2f} to {d.high:+.2f}"
            rows.append([task, name, f"{d.before:.2f}", f"{d.after:.2f}", gain, interval])
    headers = ["", "metric", "before", "after", "difference", f"{LEVEL:.0%} interval"]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, stralign="right")


def forest_table(metrics: Mapping[str, float], depth_confusion: np.ndarray) -> str:
    """Tables of the hierarchy metrics and of the depth of true masks (rows) by predicted depth (columns)."""
    rows = []
    for relation in ("ancestor", "parent"):
        for scope in SCOPES:
            for ious, suffix in (("0.50:0.95", ""), ("0.50", "-50")):
                suffix = f"-{scope}{suffix}" if scope else suffix
                values = [_cell(metrics, f"{relation}_{measure}{suffix}") for measure in MEASURES]
                rows.append([relation, scope or "end to end", ious, *values])
    table = tabulate(
        rows, headers=["relation", "over", "IoU", *MEASURES], tablefmt="pipe", disable_numparse=True, stralign="right"
    )
    depths = len(depth_confusion) - 1
    names = [f"depth {d}{'+' if d == depths - 1 else ''}" for d in range(depths)]
    confusion = tabulate(
        [[name, *row] for name, row in zip([*names, "not true"], depth_confusion.tolist())],
        headers=["true \\ predicted (IoU 0.50)", *names, "not found"],
        tablefmt="pipe",
    )
    return f"{table}\n\n{confusion}"


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

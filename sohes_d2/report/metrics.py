"""Metrics shown in a report, from the output of `sohes evaluate --output`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..labels.writer import read_json
from .label_file import ReportError


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Groups of numbers for the page.

    Args:
        path: a json object of numbers, null (undefined) and matrices; names may have a group before a slash
            ("segm/AR@1000"), and objects may be nested, which means the same.

    Returns:
        Per group ``title``, ``rows`` of [name, number or None], and ``matrices`` of [name, rows of numbers].

    Raises:
        ReportError: the file is missing, no json, or holds nothing of the kind.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ReportError(f"{path}: metrics must be a json object of names and numbers")
    groups: dict[str, dict[str, Any]] = {}
    for name, value in _flatten(content, ""):
        title, _, short = name.rpartition("/")
        group = groups.setdefault(title, {"title": title, "rows": [], "matrices": []})
        if _is_matrix(value):
            group["matrices"].append([short, value])
        elif value is None or _is_number(value):
            group["rows"].append([short, value if value is None or math.isfinite(value) else None])
    result = [group for group in groups.values() if group["rows"] or group["matrices"]]
    if not result:
        raise ReportError(f"{path} holds no numbers; give the file that sohes evaluate --output wrote")
    return result


def _flatten(content: dict[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in content.items():
        pairs += _flatten(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return pairs


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_matrix(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, list) and all(_is_number(v) and math.isfinite(v) for v in row) for row in value)
    )

"""summary.json: label statistics from the indices of the label files, and the speed of the run."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..labels.index import ShardIndex
from .steps import STAGES

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 5.0

_PACKAGES = (
    "numpy",
    "torch",
    "torchvision",
    "timm",
    "opencv-python",
    "opencv-python-headless",
    "pillow",
    "pycocotools",
    "numba",
)


def package_versions() -> dict[str, str]:
    """Versions of the installed libraries that results may depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Hardware facts that the speed depends on."""
    facts = {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "device": str(device),
    }
    if device.type == "cuda":
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


def label_statistics(indices: Sequence[ShardIndex]) -> dict[str, Any]:
    """Counts and histograms over label files.

    `size_histogram` counts masks by COCO's size classes (32^2 and 96^2 pixels), `relative_size_histogram` by share of
    the image area.
    """
    masks_per_image = np.concatenate([index.rows["count"] for index in indices] or [np.zeros(0, np.int32)])
    some = len(masks_per_image) > 0
    return {
        "images": len(masks_per_image),
        "masks": int(masks_per_image.sum()),
        "skipped": sum(index.stats["skipped"] for index in indices),
        "masks_per_image": {
            "min": int(masks_per_image.min()) if some else 0,
            "mean": round(float(masks_per_image.mean()), 2) if some else 0.0,
            "median": float(np.median(masks_per_image)) if some else 0.0,
            "max": int(masks_per_image.max()) if some else 0,
        },
        "depth_histogram": _sum(index.stats["depth"] for index in indices),
        "size_histogram": _sum(index.stats["size"] for index in indices),
        "relative_size_histogram": _sum(index.stats["relative_size"] for index in indices),
    }


def speed(images: int, wall_seconds: float, stage_seconds: Mapping[str, float]) -> dict[str, Any]:
    """Speed of this session.

    Seconds of a stage are summed over processes, so its images/s are per process.
    """
    return {
        "images": images,
        "wall_seconds": round(wall_seconds, 3),
        "images_per_second": round(images / wall_seconds, 3) if wall_seconds > 0 else 0.0,
        "stages": {
            stage: {
                "seconds": round(stage_seconds[stage], 3),
                "images_per_second": round(images / stage_seconds[stage], 3) if stage_seconds[stage] > 0 else None,
            }
            for stage in STAGES
        },
    }


def _sum(histograms: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for histogram in histograms:
        for name, count in histogram.items():
            total[name] += count
    return dict(total)


class Progress:
    """Progress counter; images done before this run count for the position, not for the speed."""

    def __init__(self, total: int, terminal: bool | None = None):
        self._total = total
        self._before = self._done = self._skipped = self._masks = 0
        self._start = self._last = time.monotonic()
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self._bar = tqdm(total=total, unit="image", dynamic_ncols=True, smoothing=0.05) if terminal else None

    def count_before(self, images: int) -> None:
        """Count images done before this run."""
        self._before += images
        if self._bar is not None:
            self._bar.initial += images
            self._bar.update(images)

    def count(self, images: int, masks: int, skipped: int) -> None:
        """Count images done now, including skipped ones."""
        self._done += images
        self._masks += masks
        self._skipped += skipped
        if self._bar is not None:
            self._bar.set_postfix(masks=self._masks, skipped=self._skipped, refresh=False)
            self._bar.update(images)
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            logger.info(self.line())

    def line(self) -> str:
        """Current state as text."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = self._done / seconds
        position = self._before + self._done
        left = datetime.timedelta(seconds=round((self._total - position) / speed)) if speed else "?"
        made = f"{self._masks} masks, {self._skipped} skipped"
        return f"{position}/{self._total} images, {speed:.2f} images/s, {left} left, {made}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            logger.info(self.line())

"""summary.json: label statistics from the indices of the label files, and the speed of the run."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..labels.index import ShardIndex
from .units import STAGES, UnitResult

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

    def total(histogram: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for index in indices:
            counts.update(index.stats[histogram])
        return dict(counts)

    masks = np.concatenate([np.zeros(0, np.int32), *(index.rows["count"] for index in indices)])
    masks_or_0 = masks if len(masks) else np.zeros(1, np.int32)
    return {
        "images": len(masks),
        "masks": int(masks.sum()),
        "skipped": sum(index.stats["skipped"] for index in indices),
        "masks_per_image": {
            "min": int(masks_or_0.min()),
            "mean": round(float(masks_or_0.mean()), 2),
            "median": float(np.median(masks_or_0)),
            "max": int(masks_or_0.max()),
        },
        "depth_histogram": total("depth"),
        "size_histogram": total("size"),
        "relative_size_histogram": total("relative_size"),
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


class Progress:
    """Progress as a bar on a terminal, else as log lines. Images done before this run do not count for the speed."""

    def __init__(self, total: int):
        self.done = 0
        self._total = total
        self._before = self._skipped = self._masks = 0
        self._start = self._last = time.monotonic()
        self._bar = tqdm(total=total, unit="image", dynamic_ncols=True, smoothing=0.05) if sys.stderr.isatty() else None

    def count_before(self, images: int) -> None:
        """Count images done before this run."""
        self._before += images
        if self._bar is not None:
            self._bar.initial += images
            self._bar.update(images)

    def count(self, result: UnitResult) -> None:
        """Count the images of a unit, including skipped ones."""
        self.done += len(result.results)
        self._masks += sum(image.masks for image in result.results)
        self._skipped += sum(image.skipped is not None for image in result.results)
        if self._bar is not None:
            self._bar.set_postfix(masks=self._masks, skipped=self._skipped, refresh=False)
            self._bar.update(len(result.results))
        elif time.monotonic() - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self._log()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        else:
            self._log()

    def _log(self) -> None:
        seconds = max(time.monotonic() - self._start, 1e-9)
        speed = self.done / seconds
        position = self._before + self.done
        left = datetime.timedelta(seconds=round((self._total - position) / speed)) if speed else "?"
        made = f"{self._masks} masks, {self._skipped} skipped"
        logger.info(f"{position}/{self._total} images, {speed:.2f} images/s, {left} left, {made}")

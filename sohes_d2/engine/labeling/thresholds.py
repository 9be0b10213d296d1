"""Choosing merging thresholds: how many regions each theta leaves on a sample of images, and a list worth trying.

Cosine similarities of different backbones lie in different ranges, so that thresholds of one mean nothing to
another. Counts of regions do: a proposal aims at the same counts for every backbone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data.sources import ImageList
from ...exploration.merging import MergeHistory, merge_regions
from ...structures.images import ImageReadError, read_image

TABLE_THETAS = (0.99, 0.98, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)
# From objects of a few regions a photo to fine parts; the finest level leaves out regions of fewer than about eight
# cells.
FEWEST_REGIONS = 4.0
CELLS_PER_REGION = 8.0


@dataclass(frozen=True)
class ThetaReport:
    """Regions per threshold on a sample.

    Attributes:
        images: number of images in the sample.
        cells: mean number of grid cells per image.
        table: per theta, descending: (theta, mean number of regions).
        proposed: a list of thetas, descending.
    """

    images: int
    cells: float
    table: list[tuple[float, float]]
    proposed: list[float]

    def lines(self) -> list[str]:
        """The report as text."""
        rows = [f"{self.images} images, {self.cells:.0f} cells each on average", f"{'theta':>8} {'regions':>9}"]
        rows += [f"{theta:8.4f} {count:9.1f}" for theta, count in self.table]
        return [*rows, f"proposed: EXPLORATION.THETAS '[{', '.join(f'{theta:g}' for theta in self.proposed)}]'"]


def suggest_thetas(images: ImageList, extractor: Any, sample: int = 20, levels: int = 6) -> ThetaReport:
    """Count regions per threshold on images spread evenly over a list. Images that cannot be read are left out.

    Args:
        images: the list.
        extractor: a FeatureExtractor.
        sample: at most so many images.
        levels: length of the proposed list.

    Raises:
        ValueError: no image of the sample can be read.
    """
    histories = []
    for position in np.unique(np.linspace(0, len(images) - 1, sample).astype(int)):
        try:
            image = read_image(images[int(position)].path)
        except ImageReadError:
            continue
        histories.append(merge_regions(extractor.extract([image])[0]))
    if not histories:
        raise ValueError("no image of the sample can be read; see --images")
    thetas = sorted({*TABLE_THETAS, *map(float, extractor.default_thetas)}, reverse=True)
    cells = float(np.mean([history.grid[0] * history.grid[1] for history in histories]))
    finest = max(cells / CELLS_PER_REGION, FEWEST_REGIONS)
    proposed = [_theta_for(histories, count) for count in np.geomspace(finest, FEWEST_REGIONS, levels)]
    return ThetaReport(
        len(histories),
        cells,
        list(zip(thetas, _mean_counts(histories, thetas).tolist())),
        sorted(set(proposed), reverse=True),
    )


def _mean_counts(histories: Sequence[MergeHistory], thetas: Sequence[float]) -> np.ndarray:
    """(L,) mean number of regions; never falls when theta rises."""
    return np.mean([history.region_counts(thetas) for history in histories], axis=0)


def _theta_for(histories: Sequence[MergeHistory], count: float) -> float:
    """The theta, to four digits, that leaves about ``count`` regions on average."""
    low, high = -1.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if _mean_counts(histories, [middle])[0] < count:
            low = middle
        else:
            high = middle
    return round(high, 4)

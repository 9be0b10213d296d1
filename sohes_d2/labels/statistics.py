"""Statistics of labels per image: counts, depths, sizes, coverage, and outliers.

Only one image is in memory at a time.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import RecordError
from ..structures.masks import mask_areas, union_area
from .forests import read_forest
from .index import COCO_SIZES, RELATIVE_SIZES, is_label_file, size_name
from .reader import LabelStream
from .schema import Annotation, ImageRecord, Problems, read_annotations, read_image
from .shards import ShardedDataset

# Bins of mask area as a share of the image, four per decade.
AREA_BINS = np.logspace(-5, 0, 21)


@dataclass(frozen=True)
class ImageRow:
    """Statistics of one image.

    Attributes:
        file_name: file name of the image.
        masks: number of masks.
        depth: depth of its deepest mask, 0 for a whole; -1 without masks.
        coverage: share of the image covered by any mask.
    """

    file_name: str
    masks: int
    depth: int
    coverage: float


_RANKS: dict[str, Callable[[ImageRow], float]] = {
    "most masks": lambda row: row.masks,
    "fewest masks": lambda row: -row.masks,
    "least covered": lambda row: -row.coverage,
    "deepest": lambda row: row.depth,
}


@dataclass
class LabelStatistics:
    """Statistics of labels.

    Attributes:
        masks_per_image, deepest, coverage: per image, in file order; see `ImageRow`.
        depth: number of masks by depth.
        size: number of masks by COCO's size classes (32^2 and 96^2 pixels).
        relative_size: number of masks by share of the image.
        area_histogram: number of masks by share of the image in `AREA_BINS`; the first bin includes smaller ones.
        has_hierarchy: whether any annotation has ``parent_id``; otherwise every mask is a whole.
        crowds: number of crowd regions, which are not counted as masks.
        outstanding: outlier images: "most masks", "fewest masks", "least covered", "deepest".
        problems: unusable records, by reason and with messages.
    """

    masks_per_image: array = field(default_factory=lambda: array("q"))
    deepest: array = field(default_factory=lambda: array("q"))
    coverage: array = field(default_factory=lambda: array("d"))
    depth: Counter[int] = field(default_factory=Counter)
    size: Counter[str] = field(default_factory=Counter)
    relative_size: Counter[str] = field(default_factory=Counter)
    area_histogram: np.ndarray = field(default_factory=lambda: np.zeros(len(AREA_BINS) - 1, np.int64))
    has_hierarchy: bool = False
    crowds: int = 0
    outstanding: dict[str, list[ImageRow]] = field(default_factory=dict)
    problems: Problems = field(default_factory=Problems)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.masks_per_image)

    @property
    def masks(self) -> int:
        """Number of masks."""
        return sum(self.masks_per_image)

    def summary(self) -> dict[str, Any]:
        """All counts and the outlier images, json-ready."""
        return {
            "images": self.images,
            "masks": self.masks,
            "crowds": self.crowds,
            "broken": len(self.problems),
            "broken_by_reason": dict(self.problems.counts),
            "has_hierarchy": self.has_hierarchy,
            "masks_per_image": _spread(self.masks_per_image),
            "deepest_of_image": _spread(self.deepest),
            "coverage": _spread(self.coverage),
            "depth_histogram": {str(depth): self.depth[depth] for depth in sorted(self.depth)},
            "size_histogram": {name: self.size[name] for name, _ in COCO_SIZES},
            "relative_size_histogram": {name: self.relative_size[name] for name, _ in RELATIVE_SIZES},
            "outstanding": {name: [vars(row) for row in rows] for name, rows in self.outstanding.items()},
            "problems": self.problems.items,
        }


def inspect_labels(path: str, max_images: int = 0, outstanding: int = 5) -> LabelStatistics:
    """Compute statistics of a label file, a folder of shards, or any COCO json.

    Unusable masks, and images whose parents form a cycle, are counted in ``problems``.

    Args:
        path: the file or folder. A folder may be unfinished.
        max_images: number of images, evenly spread over the list; 0: all.
        outstanding: number of outlier images per list.

    Raises:
        InputError: no such file, no labels, or ambiguous ids.
        CorruptFileError: a damaged file.
    """
    statistics = LabelStatistics(outstanding={name: [] for name in _RANKS})
    for image, labels in _labels(path, max_images, statistics.problems):
        row = _add(statistics, image, labels)
        if row is not None:
            for name, rows in statistics.outstanding.items():
                rows.append(row)
                rows.sort(key=_RANKS[name], reverse=True)  # stable: of equal images, the first ones are kept
                del rows[outstanding:]
    return statistics


def _labels(path: str, max_images: int, problems: Problems) -> Iterator[tuple[ImageRecord, list[Annotation]]]:
    """Yield image records and their annotations."""
    if os.path.isdir(path) or is_label_file(path):
        labels = ShardedDataset(path, allow_incomplete=True)
        for k in _spread_indices(len(labels), max_images):
            record = labels[k]
            image = read_image(record["image"], problems, path)
            yield image, read_annotations(record["annotations"], problems, f"{path}: image {image['id']!r}")
        return
    with closing(LabelStream(path, problems)) as coco:
        for k in _spread_indices(len(coco.images), max_images):
            yield coco.images[k], coco.annotations(coco.images[k]["id"])


def _spread_indices(count: int, most: int) -> range | list[int]:
    if not most or most >= count:
        return range(count)
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _add(statistics: LabelStatistics, image: ImageRecord, annotations: list[Annotation]) -> ImageRow | None:
    """Count one image; None if its record cannot be used."""
    name = str(image.get("file_name", image["id"]))
    if "height" not in image:
        statistics.problems.add(name, RecordError("its record has no usable height and width", "no size"))
        return None
    size = image["height"], image["width"]
    forest, kept = read_forest(annotations, size, statistics.problems, name)
    areas, pixels = mask_areas(forest.masks), size[0] * size[1]
    depths = forest.depths()
    statistics.crowds += sum(annotation["iscrowd"] for annotation in annotations)
    statistics.has_hierarchy |= any("parent_id" in annotations[k] for k in kept)
    statistics.depth.update(depths.tolist())
    for area in areas.tolist():
        statistics.size[size_name(area, COCO_SIZES)] += 1
        statistics.relative_size[size_name(area / pixels, RELATIVE_SIZES)] += 1
    statistics.area_histogram += np.histogram(np.clip(areas / pixels, AREA_BINS[0], 1), AREA_BINS)[0]
    row = ImageRow(name, len(forest), int(depths.max(initial=-1)), union_area(forest.masks) / pixels)
    statistics.masks_per_image.append(row.masks)
    statistics.deepest.append(row.depth)
    statistics.coverage.append(row.coverage)
    return row


def _spread(values: array) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("min", "mean", "median", "max"), 0.0)
    numbers = np.asarray(values, np.float64)
    found = {"min": numbers.min(), "mean": numbers.mean(), "median": np.median(numbers), "max": numbers.max()}
    return {name: round(float(value), 4) for name, value in found.items()}

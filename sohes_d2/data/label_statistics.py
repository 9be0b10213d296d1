"""What labels hold, image by image: counts, depths, sizes, coverage, and the images that stand out.

One image is in memory at a time, whatever the size of the file.
"""

from __future__ import annotations

import heapq
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ..structures.forest import NO_PARENT, Forest, ForestError
from ..structures.masks import RLE, mask_areas, rle_from_coco
from ..structures.rle_check import check_rle
from .coco_stream import CocoFile, CocoFileError
from .shard_index import COCO_SIZES, RELATIVE_SIZES, LabelFileError, is_label_file
from .shards import IncompleteError, ShardedDataset

_PROBLEMS_SHOWN = 20
# Bins of mask area as a share of the image, four to a factor of ten.
AREA_BINS = np.logspace(-5, 0, 21)


class LabelsError(ValueError):
    """Labels that cannot be read at all; the message says why and what to pass instead."""


@dataclass(frozen=True)
class ImageRow:
    """One image in numbers.

    Attributes:
        file_name: of the image.
        masks: how many it has.
        depth: of its deepest mask, 0 for a whole; -1 without masks.
        coverage: share of the image under any mask.
    """

    file_name: str
    masks: int
    depth: int
    coverage: float


@dataclass
class LabelStatistics:
    """Counts over labels.

    Attributes:
        masks_per_image, deepest, coverage: per image, in the order of the file; see `ImageRow`.
        depth: masks by depth.
        size: masks by COCO's sizes (areas under 32^2 and 96^2 pixels).
        relative_size: masks by their share of the image.
        area_histogram: masks by their share of the image in `AREA_BINS`; smaller ones are in the first bin.
        has_hierarchy: whether any annotation has ``parent_id``; without, every mask is a whole.
        crowds: crowd regions, which are not counted as masks.
        outstanding: images that stand out: "most masks", "fewest masks", "least covered", "deepest".
        problems: what could not be used, in words, the first few.
        broken: how many masks or images that concerns.
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
    problems: list[str] = field(default_factory=list)
    broken: int = 0

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.masks_per_image)

    @property
    def masks(self) -> int:
        """How many masks there are."""
        return sum(self.masks_per_image)

    def summary(self) -> dict[str, Any]:
        """Json-ready: all counts, and the images that stand out."""
        return {
            "images": self.images,
            "masks": self.masks,
            "crowds": self.crowds,
            "broken": self.broken,
            "has_hierarchy": self.has_hierarchy,
            "masks_per_image": _spread(self.masks_per_image),
            "deepest_of_image": _spread(self.deepest),
            "coverage": _spread(self.coverage),
            "depth_histogram": {str(depth): self.depth[depth] for depth in sorted(self.depth)},
            "size_histogram": {name: self.size[name] for name, _ in COCO_SIZES},
            "relative_size_histogram": {name: self.relative_size[name] for name, _ in RELATIVE_SIZES},
            "outstanding": {name: [vars(row) for row in rows] for name, rows in self.outstanding.items()},
            "problems": self.problems,
        }


def inspect_labels(path: str, max_images: int = 0, outstanding: int = 5) -> LabelStatistics:
    """Count over a label file, a folder of shards, or any COCO json.

    A mask that cannot be used, or an image whose parents run in a circle, is counted in ``broken``, and the rest goes
    on.

    Args:
        path: the file or folder. A folder may be unfinished.
        max_images: so many images, evenly spread over the list; 0 takes all.
        outstanding: how many images to name per list.

    Raises:
        LabelsError: nothing there, or no labels.
        OSError: the file cannot be read.
    """
    statistics = LabelStatistics()
    ranks = {
        "most masks": _Best(outstanding, lambda row: row.masks),
        "fewest masks": _Best(outstanding, lambda row: -row.masks),
        "least covered": _Best(outstanding, lambda row: -row.coverage),
        "deepest": _Best(outstanding, lambda row: row.depth),
    }
    for image, labels in _labels(path, max_images):
        row = _add(statistics, image, labels)
        if row is not None:
            for best in ranks.values():
                best.add(row)
    statistics.outstanding = {name: best.rows() for name, best in ranks.items()}
    return statistics


def _labels(path: str, max_images: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Image records and their annotations."""
    if not os.path.exists(path):
        raise LabelsError(f"{path!r} does not exist; pass a COCO json, or a folder of shards")
    try:
        if os.path.isdir(path) or is_label_file(path):
            labels = ShardedDataset(path, allow_incomplete=True)
            for k in _spread_indices(len(labels), max_images):
                record = labels[k]
                yield record["image"], record["annotations"]
            return
        with open(path, "rb") as file:
            if file.read(64).lstrip()[:1] == b"[":
                raise LabelsError(
                    f"{path!r} is a list of results, which says nothing of its images; pass a COCO file with `images`, "
                    "or score the list with tools/evaluate_json.py"
                )
        coco = CocoFile(path)
        try:
            for k in _spread_indices(len(coco.images), max_images):
                yield coco.images[k], coco.annotations(coco.images[k]["id"])
        finally:
            coco.close()
    except (CocoFileError, LabelFileError, IncompleteError) as error:
        raise LabelsError(str(error)) from error


def _spread_indices(count: int, most: int) -> range | list[int]:
    if not most or most >= count:
        return range(count)
    return np.linspace(0, count - 1, most).round().astype(int).tolist()


def _add(statistics: LabelStatistics, image: dict[str, Any], annotations: list[dict[str, Any]]) -> ImageRow | None:
    """Count one image; None if its record cannot be used."""
    name = str(image.get("file_name") or image.get("coco_url") or image["id"])
    height, width = image.get("height"), image.get("width")
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        _note(statistics, f"{name}: height {height!r} and width {width!r} are no size; the image is left out")
        return None
    masks, kept = [], []
    for annotation in annotations:
        if annotation.get("iscrowd"):
            statistics.crowds += 1
            continue
        try:
            mask = _checked_mask(annotation.get("segmentation"), (height, width))
        except (ValueError, TypeError, KeyError) as error:
            _note(statistics, f"{name}, annotation {annotation.get('id')}: {error}")
            continue
        masks.append(mask)
        kept.append(annotation)
    areas, pixels = mask_areas(masks), height * width
    depths = _depths(statistics, name, masks, kept, (height, width))
    statistics.has_hierarchy |= any("parent_id" in annotation for annotation in kept)
    statistics.depth.update(depths.tolist())
    for area in areas.tolist():
        statistics.size[next(size for size, limit in COCO_SIZES if area < limit)] += 1
        statistics.relative_size[next(size for size, limit in RELATIVE_SIZES if area / pixels < limit)] += 1
    statistics.area_histogram += np.histogram(np.clip(areas / pixels, AREA_BINS[0], 1), AREA_BINS)[0]
    covered = int(mask_util.area(mask_util.merge(masks))) / pixels if masks else 0.0
    row = ImageRow(name, len(masks), int(depths.max(initial=-1)), covered)
    statistics.masks_per_image.append(row.masks)
    statistics.deepest.append(row.depth)
    statistics.coverage.append(row.coverage)
    return row


def _checked_mask(segmentation: Any, size: tuple[int, int]) -> RLE:
    """The RLE of a segmentation that pycocotools can be trusted with.

    Raises:
        ValueError, TypeError, KeyError: no segmentation, or a damaged one.
    """
    if isinstance(segmentation, list):
        for polygon in segmentation:
            points = np.asarray(polygon, np.float64)
            if points.ndim != 1 or len(points) < 6 or len(points) % 2:
                raise ValueError("a polygon needs three points or more, as a flat list x, y, x, y, ...")
            # what is drawn far outside costs memory without end
            if not np.abs(points).max() <= 4 * max(size):
                raise ValueError("a polygon lies far outside of its image")
    mask = rle_from_coco(segmentation, size)
    check_rle(mask)
    return mask


def _depths(
    statistics: LabelStatistics, name: str, masks: list[RLE], annotations: list[dict[str, Any]], size: tuple[int, int]
) -> np.ndarray:
    """(N,) depths by ``parent_id``; where a parent is missing its child is a whole."""
    index = {annotation.get("id"): k for k, annotation in enumerate(annotations)}
    parents = [index.get(annotation.get("parent_id") or None, NO_PARENT) for annotation in annotations]
    lost = sum(parent == NO_PARENT and bool(a.get("parent_id")) for parent, a in zip(parents, annotations))
    if lost:
        _note(statistics, f"{name}: {lost} masks name a parent that is not there; counted as wholes")
    try:
        return Forest(masks, parents, size).depths()
    except ForestError as error:
        _note(statistics, f"{name}: {error}; all its masks are counted as wholes")
        return np.zeros(len(masks), np.int64)


def _note(statistics: LabelStatistics, problem: str) -> None:
    statistics.broken += 1
    if len(statistics.problems) < _PROBLEMS_SHOWN:
        statistics.problems.append(problem)


class _Best:
    """The images of highest value so far; of equal ones the first."""

    def __init__(self, count: int, value: Any):
        self._count, self._value = count, value
        self._heap: list[tuple[float, int, ImageRow]] = []
        self._seen = 0

    def add(self, row: ImageRow) -> None:
        self._seen += 1
        entry = (self._value(row), -self._seen, row)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, entry)
        elif self._heap:
            heapq.heappushpop(self._heap, entry)

    def rows(self) -> list[ImageRow]:
        return [row for _, _, row in sorted(self._heap, reverse=True)]


def _spread(values: array) -> dict[str, float]:
    if not values:
        return dict.fromkeys(("min", "mean", "median", "max"), 0.0)
    array_ = np.asarray(values, np.float64)
    found = {"min": array_.min(), "mean": array_.mean(), "median": np.median(array_), "max": array_.max()}
    return {name: round(float(value), 4) for name, value in found.items()}

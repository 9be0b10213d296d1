"""Gallery: entity forests of a few photos as pictures, a COCO json and an html page."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.sources import ID_STRIDE, ImageItem, ImageList
from ..errors import ImageReadError
from ..labels.writer import SEPARATOR, dump_line, image_record, write_label_file
from ..report import ReportOptions, read_label_file, write_report
from ..structures.files import write_picture
from ..structures.forest import Forest
from ..structures.images import read_image
from ..visualization import MAX_MASKS, best_scored, draw_depth, draw_strips, draw_tree, forest_colors, forest_figure
from ..visualization.draw import file_stem

logger = logging.getLogger(__name__)

LABELS, PAGE, PICTURES = "labels.json", "report.html", "pictures"
JPEG_QUALITY = 92
# More than in the pictures, but limited: the browser keeps all masks of the page in memory.
PAGE_MASKS = 300

FindForests = Callable[[Sequence[np.ndarray]], Sequence[Forest]]
# Errors that a single photo can cause; only that photo is skipped.
_PHOTO_ERRORS = (ValueError, MemoryError, torch.cuda.OutOfMemoryError)


@dataclass(frozen=True)
class DemoOptions:
    """Which masks are kept, and how they are drawn.

    Attributes:
        score_threshold: masks with a lower score are dropped; in [0, 1].
        max_depth: deeper masks are dropped (0: wholes only); None keeps all.
        max_area: masks larger than this share of the photo are dropped from the pictures but kept in the json.
        max_masks: number of best-scored masks to draw; 0 draws all.
        entities: number of entities, with their parts, in the pictures and initially on the page; 0: all masks.
        width: width of the pictures in pixels.
        batch_size: photos per batch.
    """

    score_threshold: float = 0.0
    max_depth: int | None = None
    max_area: float = 1.0
    max_masks: int = MAX_MASKS
    entities: int = 0
    width: int = 1600
    batch_size: int = 1


@dataclass
class DemoReport:
    """Result of a run.

    Attributes:
        labels: path of the COCO json.
        page: path of the html page.
        pictures: file name of a photo -> paths of its pictures.
        forests: file name of a photo -> number of masks by depth.
        skipped: records (id, file_name, reason) of photos without a forest.
        best_score: highest score of all masks, including those below the threshold; 0 if there are none.
    """

    labels: str
    page: str
    pictures: dict[str, list[str]] = field(default_factory=dict)
    forests: dict[str, list[int]] = field(default_factory=dict)
    skipped: list[dict[str, Any]] = field(default_factory=list)
    best_score: float = 0.0


def run_demo(
    images: ImageList,
    find_forests: FindForests,
    output: str,
    options: DemoOptions | None = None,
    info: dict[str, Any] | None = None,
    title: str = "",
    on_image: Callable[[str, DemoReport], None] | None = None,
) -> DemoReport:
    """Find the forests of some photos and write them as pictures, a json and an html page.

    A photo that cannot be read or processed is recorded and skipped. The json and the page are written at the end,
    atomically.

    Args:
        images: the photos.
        find_forests: function from photos, (H, W, 3) uint8 RGB, to their forests.
        output: output folder; created if missing. Files of an earlier run are replaced.
        options: see `DemoOptions`.
        info: the ``info`` section of the json.
        title: title of the page.
        on_image: called after each photo, done or skipped, with its file name and the report so far.

    Raises:
        OSError: the folder cannot be written.
    """
    options = options or DemoOptions()
    os.makedirs(os.path.join(output, PICTURES), exist_ok=True)
    report = DemoReport(os.path.join(output, LABELS), os.path.join(output, PAGE))
    lines: dict[str, list[bytes]] = {"images": [], "annotations": []}
    stems: set[str] = set()
    for item, found in _forests(images, find_forests, options.batch_size):
        if isinstance(found, str):
            report.skipped.append({"id": item.image_id, "file_name": item.file_name, "reason": found})
        else:
            image, forest = found
            report.best_score = max(report.best_score, float(forest.scores.max(initial=0.0)))
            forest = forest.filter(options.score_threshold).filter(max_depth=options.max_depth)
            stem = os.path.join(output, PICTURES, file_stem(item.file_name, stems))
            report.pictures[item.file_name] = write_pictures(stem, image, forest, item.file_name, options)
            report.forests[item.file_name] = np.bincount(forest.depths()).tolist() if len(forest) else []
            lines["images"].append(dump_line(image_record(item.image_id, item.file_name, *image.shape[:2])))
            first_id = item.image_id * ID_STRIDE + 1
            lines["annotations"] += [dump_line(record) for record in forest.to_coco(item.image_id, first_id)]
        if on_image:
            on_image(item.file_name, report)
    lines["skipped"] = [dump_line(record) for record in report.skipped]
    blocks = {name: [[SEPARATOR.join(section)]] if section else [] for name, section in lines.items()}
    write_label_file(report.labels, info or {}, blocks)
    summary = write_report(
        report.page,
        read_label_file(report.labels),
        Path(images.root),
        options=ReportOptions(title=title, max_masks=PAGE_MASKS, entities=options.entities),
    )
    for problem in [*summary.missing, *summary.problems]:
        logger.warning("the page: %s", problem)
    return report


def write_pictures(stem: str, image: np.ndarray, forest: Forest, title: str, options: DemoOptions) -> list[str]:
    """Write all pictures of one forest in the same colours, replacing those of an earlier run with the same stem.

    Args:
        stem: path without suffix; ``_forest``, ``_depth0`` and so on, ``_strips``, ``_tree`` and ``.jpg`` are appended.
        image: (H, W, 3) uint8 RGB.
        forest: the forest to draw.
        title: title of the figure.
        options: see `DemoOptions`.

    Returns:
        Paths of the pictures.
    """
    forest = forest.select(options.entities, parts=True) if options.entities else forest
    shown = forest.filter(max_area=options.max_area * image.shape[0] * image.shape[1])
    if options.max_masks and len(shown) > options.max_masks:
        shown = best_scored(shown, options.max_masks)
    colors = forest_colors(shown)
    height = min(3 * options.width, max(1, round(image.shape[0] / image.shape[1] * options.width)))
    deepest = int(shown.depths().max()) if len(shown) else 0
    figure = forest_figure(image, forest, title, options.width, options.max_masks, options.max_area)
    pictures = {"forest": figure}
    for depth in range(deepest + 1):
        pictures[f"depth{depth}"] = draw_depth(image, shown, depth, colors, (height, options.width))
    pictures["strips"] = draw_strips(image, shown, colors, options.width)
    pictures["tree"] = draw_tree(image, shown, colors, options.width)
    _remove_deeper(stem, deepest)
    paths = []
    for name, picture in pictures.items():
        paths.append(f"{stem}_{name}.jpg")
        write_picture(paths[-1], picture, "JPEG", quality=JPEG_QUALITY)
    return paths


def _forests(
    images: ImageList, find_forests: FindForests, batch_size: int
) -> Iterator[tuple[ImageItem, tuple[np.ndarray, Forest] | str]]:
    """Yield each image with its pixels and forest, or with the reason why it has none, in list order."""
    for start in range(0, len(images), batch_size):
        items = images[start : start + batch_size]
        results: dict[int, tuple[np.ndarray, Forest] | str] = {}
        pixels: dict[int, np.ndarray] = {}
        for item in items:
            try:
                pixels[item.image_id] = read_image(item.path)
            except ImageReadError as error:
                results[item.image_id] = error.reason
        try:
            forests = find_forests(list(pixels.values())) if pixels else []
            results.update((k, (pixels[k], forest)) for k, forest in zip(pixels, forests))
        except _PHOTO_ERRORS:  # run each photo alone, so that only the failing one is skipped
            results.update((k, _alone(image, find_forests)) for k, image in pixels.items())
        yield from ((item, results[item.image_id]) for item in items)


def _alone(image: np.ndarray, find_forests: FindForests) -> tuple[np.ndarray, Forest] | str:
    try:
        return image, find_forests([image])[0]
    except _PHOTO_ERRORS as error:
        return f"{type(error).__name__}: {error}"


def _remove_deeper(stem: str, deepest: int) -> None:
    depth = deepest + 1
    while os.path.exists(path := f"{stem}_depth{depth}.jpg"):
        os.unlink(path)
        depth += 1

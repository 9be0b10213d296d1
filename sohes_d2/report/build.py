"""The report: a page in one self-contained html file, with its style and script.

It is written image by image, so that only one photo and its masks are in memory.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any, TextIO

from tqdm import tqdm

from ..errors import InputError
from ..labels.schema import ImageRecord
from ..structures.files import atomic_writer
from ..structures.images import image_size
from .label_file import MATCH_IOU, ImageForest, LabelFile, image_forest, match_images, match_masks, names_of
from .packing import pack_forest, pack_photo, photo_path, read_photo, shown_size

# In loading order; the scripts share one scope.
SCRIPTS = (
    "runs.js",
    "contour.js",
    "forest.js",
    "filters.js",
    "stage.js",
    "thumbnails.js",
    "tree.js",
    "gallery.js",
    "dialogs.js",
    "download.js",
    "app.js",
)
_DATA_MARK = "<!-- data -->"
# Entity counts offered by the page's slider, in addition to the initial one.
ENTITY_COUNTS = (1, 2, 3, 5, 10, 15, 20, 30, 50)
BAR_DELAY = 1.0  # seconds until a progress bar appears on a terminal


@dataclass(frozen=True)
class ReportOptions:
    """Options of a page.

    Attributes:
        max_images: number of images, counted from the first; 0: all.
        max_side: longer side of the pictures in the page, in pixels; smaller ones are not enlarged.
        max_masks: number of best-scored masks kept per image; 0: all.
        score_threshold: masks with a lower score are dropped; None: keep all.
        title: title of the page; the file names by default.
        entities: initial number of entities per image, see `Forest.select`; 0: all masks.
    """

    max_images: int = 0
    max_side: int = 1024
    max_masks: int = 0
    score_threshold: float | None = None
    title: str = ""
    entities: int = 20


@dataclass
class ReportSummary:
    """Summary of a page.

    Attributes:
        images: number of images in the page, with or without photo.
        masks: number of masks in the page, per file.
        matched: number of pairs of masks, if two files are compared.
        crowds: number of skipped crowd regions.
        missing: messages about photos that are shown as missing.
        problems: messages about invalid images and masks.
        unmatched_images: number of images in the page that are not in the second file.
        size: size of the page in bytes.
    """

    images: int = 0
    masks: list[int] = field(default_factory=list)
    matched: int = 0
    crowds: int = 0
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unmatched_images: int = 0
    size: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything could be shown unchanged."""
        return not self.missing and not self.problems


def write_report(
    output: str | Path,
    file: LabelFile,
    images: str | Path,
    other: LabelFile | None = None,
    metrics: list[dict[str, Any]] | None = None,
    options: ReportOptions | None = None,
) -> ReportSummary:
    """Write a self-contained html file, atomically.

    Args:
        output: the file to write; replaced if it exists.
        file: the labels to show.
        images: base folder of the file names in the labels.
        other: labels to show side by side with ``file``.
        metrics: from :func:`read_metrics`.
        options: see `ReportOptions`.

    Returns:
        Counts, and messages about content that could not be shown.

    Raises:
        InputError: the two files have no image in common.
        OSError: the page cannot be written.
    """
    options = options or ReportOptions()
    label_files = [file] if other is None else [file, other]
    names = names_of(label_files)
    pairs = match_images(file, other) if other is not None else {}
    if other is not None and all(matched is None for matched in pairs.values()):
        raise InputError(f"{other.path} has no image in common with {file.path}; pass a matching pair of files")
    chosen = list(file.images)[: options.max_images or None]
    summary = ReportSummary(masks=[0] * len(label_files))
    title = options.title or " and ".join(names)
    before, after = page_parts(title)
    with atomic_writer(output) as target:
        page = io.TextIOWrapper(target, encoding="utf-8", newline="\n")
        page.write(before)
        entries: list[dict[str, Any]] = []
        bar = tqdm(chosen, desc="page", unit="image", delay=BAR_DELAY, leave=False, disable=None)
        for image_id in bar:
            files = list(zip(names, label_files, (image_id, pairs.get(image_id))))
            entry = _write_image(page, len(entries), files, images, options)
            if isinstance(entry, str):
                summary.problems.append(entry)
            else:
                entries.append(entry)
        _count(summary, entries)
        index = {
            "title": title,
            "files": [{"name": name, "hierarchy": f.has_hierarchy} for name, f in zip(names, label_files)],
            "images": entries,
            "left": len(file.images) - len(chosen),
            "maxMasks": options.max_masks,
            "entityCounts": _entity_counts(options),
            "entities": options.entities,
            "scoreThreshold": options.score_threshold,
            "matchIou": MATCH_IOU,
            "metrics": metrics,
        }
        page.write(data_element("index", index))
        page.write(after)
        page.detach()  # flushes it
    summary.size = os.path.getsize(output)
    return summary


def _write_image(
    page: TextIO,
    number: int,
    files: list[tuple[str, LabelFile, Any]],
    folder: str | Path,
    options: ReportOptions,
) -> dict[str, Any] | str:
    """Write one image's data; return its index entry, or the reason why it cannot be shown.

    ``files`` has (name, label file, id of the image in it) for each label file.
    """
    _, first, first_id = files[0]
    record = first.images[first_id]
    name = record.get("file_name", f"image {first_id}")
    size = _record_size(record) or _file_size(Path(folder), record)
    if size is None:
        return f"{name!r} is skipped: neither its record nor its file has a usable height and width"
    shown = shown_size(size, options.max_side)
    photo, thumbnail, photo_problem = None, None, ""
    try:
        photo, thumbnail = pack_photo(read_photo(Path(folder), record.get("file_name"), size), shown)
    except InputError as error:
        photo_problem = str(error)

    forests: list[ImageForest | None] = []
    problems: list[str] = []
    for label_name, file, image_id in files:
        label_size = _record_size(file.images.get(image_id)) or size
        forest = None
        if label_size != size:
            problems.append(
                f"{label_name} has the image at {label_size[0]} x {label_size[1]} instead of {size[0]} x {size[1]}"
            )
        elif image_id is not None:
            forest = image_forest(file, image_id, size, options.score_threshold, options.max_masks)
            problems += [f"{label_name}: {problem}" for problem in forest.problems]
        forests.append(forest)
    matches = []
    if len(forests) == 2 and forests[0] and forests[1]:
        matches = match_masks(forests[0].forest.masks, forests[1].forest.masks)
    sides = [
        pack_forest(forest, shown, file.categories, _entity_counts(options)) if forest else None
        for forest, (_, file, _) in zip(forests, files)
    ]
    data = {
        "height": shown[0],
        "width": shown[1],
        "photo": photo,
        "sides": sides,
        "matches": [[i, j, round(iou, 3)] for i, j, iou in matches],
    }
    page.write(data_element(f"image-{number}", data))
    return {
        "name": str(name),
        "height": size[0],
        "width": size[1],
        "thumbnail": thumbnail,
        "missing": photo_problem,
        "masks": [len(f.forest) if f else None for f in forests],
        "depths": [int(f.forest.depths().max(initial=0)) if f else 0 for f in forests],
        "scores": _score_range(forests),
        "matched": len(matches),
        "crowds": sum(f.crowds for f in forests if f),
        "problems": problems,
    }


def _entity_counts(options: ReportOptions) -> list[int]:
    return sorted({*ENTITY_COUNTS, *([options.entities] if options.entities else [])})


def _record_size(record: ImageRecord | None) -> tuple[int, int] | None:
    return (record["height"], record["width"]) if record and "height" in record else None


def _file_size(folder: Path, record: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return image_size(photo_path(folder, record.get("file_name")))
    except InputError:
        return None


def _score_range(forests: list[ImageForest | None]) -> list[float]:
    scores = [float(v) for f in forests if f for v in f.forest.scores]
    return [round(min(scores), 4), round(max(scores), 4)] if scores else []


def _count(summary: ReportSummary, entries: list[dict[str, Any]]) -> None:
    summary.images = len(entries)
    for entry in entries:
        for side, masks in enumerate(entry["masks"]):
            summary.masks[side] += masks or 0
        summary.matched += entry["matched"]
        summary.crowds += entry["crowds"]
        summary.problems += [f"{entry['name']}: {problem}" for problem in entry["problems"]]
        summary.unmatched_images += entry["masks"][-1] is None
        if entry["missing"]:
            summary.missing.append(entry["missing"])


def page_parts(title: str) -> tuple[str, str]:
    """Return the parts of the page before and after its data, which consists of `data_element` strings.

    The content security policy allows only this style and script, by their checksums: no network and no other script,
    even if a name from a file were interpreted as markup.
    """
    style = _asset("style.css")
    script = '"use strict";\n(() => {\n' + "\n".join(_asset(name) for name in SCRIPTS) + "\n})();\n"
    for name, text, closing in (("style.css", style, "</style"), ("scripts", script, "</script")):
        if closing in text.lower():
            raise ValueError(f"{name} contains {closing!r}, which would end its element")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src {_checksum(style)}",
            f"script-src {_checksum(script)}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = Template(_asset("page.html")).substitute(policy=policy, title=html.escape(title), style=style, script=script)
    before, _, after = page.partition(_DATA_MARK)
    return before, after


def data_element(element_id: str, value: Any) -> str:
    """An element with json, which browsers do not execute: ASCII, and no "<" that could end it or open a comment.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    content = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{element_id}">{content}</script>\n'


def _asset(name: str) -> str:
    return (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _checksum(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
    return f"'sha256-{digest}'"

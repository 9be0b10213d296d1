"""YOLO segmentation in Ultralytics' format: one text file per photo, one line with a polygon per mask.

Kept: masks up to the tolerance. Holes are joined to their outline by seams, without loss; several components are joined
by seams that are drawn one pixel wide. Scores and the hierarchy are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml

from ...errors import InputError
from ...structures.files import write_text
from ...structures.images import IMAGE_SUFFIXES, image_size
from .base import LABEL, Entity, Options, Photo, build_photo, copy_photos, invalid, stems_of, with_folder
from .shapes import fill, fill_box, joined, rings_of

IS_FOLDER = True
LOSSES = "scores and parents are lost; outlines are polygons within the tolerance, several components are joined"


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write data.yaml, labels/ and, if the photos are known, images/."""
    for photo, stem in zip(photos, stems_of(photos)):
        height, width = photo.forest.image_size
        lines = []
        for mask in photo.forest.masks:
            ring = joined(rings_of(mask, options.tolerance)) / (width, height)
            lines.append(" ".join(["0", *(f"{value:.7g}" for value in ring.ravel())]))
        write_text(with_folder(output / "labels" / f"{stem}.txt"), "".join(line + "\n" for line in lines))
    copy_photos(photos, options.images, output / "images")
    content = {"path": ".", "train": "images", "val": "images", "names": [LABEL]}
    write_text(output / "data.yaml", yaml.safe_dump(content))


def read(source: Path, options: Options) -> list[Photo]:
    """Read a folder with labels/ and images/, or with photos in ``options.images``.

    Raises:
        InputError: no photos, or an invalid line.
    """
    images = options.images or source / "images"
    labels = source / "labels" if (source / "labels").is_dir() else source
    names = _class_names(source)
    files = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"no photo in {str(images)!r}; the sizes of photos are needed: pass their folder as --images")
    photos = []
    for file in files:
        name = file.relative_to(images)
        size = image_size(file)
        path = labels / name.with_suffix(".txt")
        entities = _read_lines(path, size, names) if path.is_file() else []
        photos.append(build_photo(name.as_posix(), size, entities))
    return photos


def _read_lines(path: Path, size: tuple[int, int], names: dict[int, str]) -> list[Entity]:
    height, width = size
    entities = []
    for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        with invalid(f"{str(path)!r}, line {k}"):
            values = [float(word) for word in line.split()]
            label = names.get(int(values[0]), str(int(values[0])))
            if len(values) == 5:  # a box: centre and size
                x, y, w, h = values[1:]
                left, right = (x - w / 2) * width, (x + w / 2) * width - 1  # the last pixel, not the edge after it
                top, bottom = (y - h / 2) * height, (y + h / 2) * height - 1
                mask = fill_box(left, top, right, bottom, size)
            else:
                mask = fill([np.array(values[1:]).reshape(-1, 2) * (width, height)], size)
            entities.append(Entity(mask, label=label))
    return entities


def _class_names(source: Path) -> dict[int, str]:
    path = source / "data.yaml"
    if not path.is_file():
        return {0: LABEL}
    try:
        names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names", {})
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(k): str(name) for k, name in pairs}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{str(path)!r} is not a valid data.yaml: {error}") from error

"""LabelMe: one json file of polygons per photo.

Kept: masks up to the tolerance (holes are joined to their polygon by seams, several components are polygons of one
group); id, parent and score in the description of each polygon, id also as group_id.
"""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import InputError
from ...structures.files import write_json
from ...structures.masks import RLE, decode_masks, encode_masks, encode_window
from ..writer import read_json
from .base import (
    LABEL,
    Entity,
    Options,
    Photo,
    build_photo,
    get,
    invalid,
    mask_facts,
    photo_size,
    stems_of,
    with_folder,
)
from .shapes import fill, fill_box, rings_of

IS_FOLDER = True
LOSSES = "outlines are polygons within the tolerance"
VERSION = "5.5.0"  # version of the written format
_FACTS = re.compile(r"\b(id|parent|score)=([-+.\deE]+)")


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write NAME.json for each photo into a folder, which can be opened in LabelMe."""
    for photo, stem in zip(photos, stems_of(photos)):
        path = output / f"{stem}.json"
        image = options.images / photo.file_name if options.images else path.parent / Path(photo.file_name).name
        height, width = photo.forest.image_size
        shapes = [
            {
                "label": LABEL,
                "points": ring.astype(float).tolist(),
                "group_id": key,
                "description": f"id={key} parent={parent} score={score}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for mask, (key, parent, score) in zip(photo.forest.masks, mask_facts(photo.forest))
            for ring in rings_of(mask, options.tolerance)
        ]
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(image, path.parent)).as_posix(),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_json(with_folder(path), content)


def read(source: Path, options: Options) -> list[Photo]:
    """Read the json files of a folder and its sub-folders: polygons, rectangles, masks.

    Raises:
        InputError: no LabelMe file, or an invalid one.
    """
    contents = ((path, read_json(path)) for path in (sorted(source.rglob("*.json")) if source.is_dir() else [source]))
    photos = [
        _photo(path, content, options)
        for path, content in contents
        if isinstance(content, dict) and "shapes" in content
    ]
    if not photos:
        raise InputError(f"{str(source)!r} has no LabelMe file (a json with 'shapes')")
    return photos


def _photo(path: Path, content: Mapping[str, Any], options: Options) -> Photo:
    where = repr(str(path))
    size = photo_size(content.get("imageHeight"), content.get("imageWidth"), where)
    image = os.path.normpath(path.parent / get(content, "imagePath", str, where).replace("\\", "/"))
    name = os.path.relpath(image, options.images) if options.images else os.path.basename(image)
    parts: dict[Any, tuple[dict[str, Any], list[RLE]]] = {}
    for k, shape in enumerate(get(content, "shapes", list, where)):
        with invalid(f"{where}, shape {k}"):
            mask = _read_shape(shape, size, f"{where}, shape {k}")
            if mask is not None:
                group = shape.get("group_id")
                parts.setdefault(("shape", k) if group is None else group, (shape, []))[1].append(mask)
    entities = []
    for shape, masks in parts.values():
        facts = dict(_FACTS.findall(str(shape.get("description") or "")))
        mask = masks[0] if len(masks) == 1 else encode_masks([decode_masks(masks).any(0)])[0]
        entities.append(Entity.from_facts(mask, facts, str(shape.get("label", LABEL))))
    return build_photo(Path(name).as_posix(), size, entities)


def _read_shape(shape: Any, size: tuple[int, int], where: str) -> RLE | None:
    """The mask of a shape; None for points and lines."""
    kind = get(shape, "shape_type", str, where)
    points = np.array(get(shape, "points", list, where), np.float64).reshape(-1, 2)
    if kind == "polygon":
        return fill([points], size)
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return fill_box(left, top, right, bottom, size)
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(get(shape, "mask", str, where)))) as picture:
            inside = np.array(picture.convert("L")) > 0
        left, top = (int(value) for value in points.min(0))
        return encode_window(inside, (top, left), size)
    return None

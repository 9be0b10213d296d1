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
from .base import DIGITS, LABEL, Entity, Options, Photo, build_photo, check_stems, get, number, parent_keys, stem_of
from .polygons import fill, rings_of

IS_FOLDER = True
LOSSES = "outlines are polygons within the tolerance"
VERSION = "5.5.0"  # version of the written format
_FACTS = re.compile(r"\b(id|parent|score)=([-+.\deE]+)")


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write NAME.json for each photo into a folder, which can be opened in LabelMe."""
    check_stems(photos)
    for photo in photos:
        path = output / f"{stem_of(photo.file_name)}.json"
        image = options.images / photo.file_name if options.images else path.parent / Path(photo.file_name).name
        height, width = photo.forest.image_size
        shapes = []
        for k, parent in enumerate(parent_keys(photo.forest)):
            score = round(float(photo.forest.scores[k]), DIGITS)
            for ring in rings_of(photo.forest.masks[k], options.tolerance):
                shapes.append(
                    {
                        "label": LABEL,
                        "points": ring.astype(float).tolist(),
                        "group_id": k + 1,
                        "description": f"id={k + 1} parent={parent} score={score}",
                        "shape_type": "polygon",
                        "flags": {},
                        "mask": None,
                    }
                )
        content: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": Path(os.path.relpath(image, path.parent)).as_posix(),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def read(source: Path, options: Options) -> list[Photo]:
    """Read the json files of a folder and its sub-folders: polygons, rectangles, masks.

    Raises:
        InputError: no LabelMe file, or an invalid one.
    """
    paths = sorted(source.rglob("*.json")) if source.is_dir() else [source]
    photos = [_read_file(path, options) for path in paths if "shapes" in _object(path)]
    if not photos:
        raise InputError(f"{str(source)!r} has no LabelMe file (a json with 'shapes')")
    return photos


def _object(path: Path) -> Mapping[str, Any]:
    content = read_json(path)
    return content if isinstance(content, dict) else {}


def _read_file(path: Path, options: Options) -> Photo:
    content, where = _object(path), repr(str(path))
    size = get(content, "imageHeight", int, where), get(content, "imageWidth", int, where)
    image = os.path.normpath(path.parent / get(content, "imagePath", str, where).replace("\\", "/"))
    name = os.path.relpath(image, options.images) if options.images else os.path.basename(image)
    parts: dict[Any, tuple[dict[str, Any], list[RLE]]] = {}
    for k, shape in enumerate(get(content, "shapes", list, where)):
        mask = _read_shape(shape, size, f"{where}, shape {k}")
        if mask is None:
            continue
        group = shape.get("group_id")
        parts.setdefault(("shape", k) if group is None else group, (shape, []))[1].append(mask)
    entities = []
    for shape, masks in parts.values():
        facts = dict(_FACTS.findall(str(shape.get("description") or "")))
        key, parent = (int(number(facts[fact]) or 0) if fact in facts else None for fact in ("id", "parent"))
        label = str(shape.get("label", LABEL))
        entities.append(Entity(_union(masks), key, parent, number(facts.get("score")), label))
    return build_photo(Path(name).as_posix(), size, entities)


def _read_shape(shape: Any, size: tuple[int, int], where: str) -> RLE | None:
    """The mask of a shape; None for points and lines."""
    kind = get(shape, "shape_type", str, where)
    try:
        points = np.array(get(shape, "points", list, where), np.float64).reshape(-1, 2)
        if kind == "polygon":
            return fill([points], size)
        if kind == "rectangle":
            (left, top), (right, bottom) = points.min(0), points.max(0)
            return fill([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], size)
        if kind == "mask":
            with Image.open(io.BytesIO(base64.b64decode(get(shape, "mask", str, where)))) as picture:
                inside = np.array(picture.convert("L")) > 0
            left, top = (int(value) for value in points.min(0))
            return encode_window(inside, (top, left), size)
    except (ValueError, OSError, IndexError) as error:
        raise InputError(f"{where}: {error}") from error
    return None


def _union(masks: list[RLE]) -> RLE:
    return masks[0] if len(masks) == 1 else encode_masks([decode_masks(masks).any(0)])[0]

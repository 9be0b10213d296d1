"""Pascal VOC: one xml file with polygons, and maps of instances and classes, per photo.

Kept: masks up to the tolerance, as <polygon> (holes are joined by seams, without loss; several components by seams that
are drawn one pixel wide); id, parent and score as <attributes>. The instance map has one mask per pixel: parts hide
their wholes there, and only the MAX_INSTANCES best-scored masks of a photo are included.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import InputError
from ...structures.files import atomic_writer, write_picture, write_text
from ...structures.forest import Forest
from ...structures.masks import RLE, decode_mask, mask_boxes
from .base import (
    DIGITS,
    LABEL,
    Entity,
    Options,
    Photo,
    add_element,
    build_photo,
    check_stems,
    copy_photos,
    number,
    parent_keys,
    read_xml,
    stem_of,
    xml_bytes,
)
from .polygons import fill, joined, rings_of

IS_FOLDER = True
LOSSES = "outlines are polygons within the tolerance, several components are joined; maps of instances have no overlaps"
MAX_INSTANCES = 254  # 0 is background, 255 is "void"
_ATTRIBUTES = ("id", "parent", "score")


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write Annotations, SegmentationObject, SegmentationClass, ImageSets, and JPEGImages if the photos are known."""
    check_stems(photos)
    for photo in photos:
        stem = stem_of(photo.file_name)
        objects = instance_map(photo.forest)
        for folder, values in (("SegmentationObject", objects), ("SegmentationClass", objects > 0)):
            path = output / folder / f"{stem}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(values.astype(np.uint8), "P")
            picture.putpalette(_palette())
            write_picture(path, picture, "PNG")
        path = output / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            file.write(xml_bytes(_annotation(photo, options.tolerance)))
    for task in ("Main", "Segmentation"):
        path = output / "ImageSets" / task / "train.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(f"{stem_of(photo.file_name)}\n" for photo in photos))
    colour = ",".join(map(str, _palette()[3:6]))
    write_text(output / "labelmap.txt", f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{LABEL}:{colour}::\n")
    copy_photos(photos, options.images, output / "JPEGImages")


def instance_map(forest: Forest) -> np.ndarray:
    """(H, W) uint8: number of the smallest included mask at each pixel, from 1 in forest order; 0 without mask."""
    best = np.argsort(-forest.scores, kind="stable")[:MAX_INSTANCES]
    values = np.zeros(forest.image_size, np.uint8)
    instances = {int(k): n for n, k in enumerate(sorted(best), 1)}
    for k in sorted(instances, key=lambda k: -int(forest.areas[k])):
        values[decode_mask(forest.masks[k])] = instances[k]
    return values


def _annotation(photo: Photo, tolerance: float) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    add_element(root, "folder", "VOC")
    add_element(root, "filename", photo.file_name)
    size = add_element(root, "size")
    height, width = photo.forest.image_size
    for name, value in (("width", width), ("height", height), ("depth", 3)):
        add_element(size, name, value)
    add_element(root, "segmented", 1)
    forest = photo.forest
    for k, (parent, box) in enumerate(zip(parent_keys(forest), mask_boxes(forest.masks))):
        entity = add_element(root, "object")
        add_element(entity, "name", LABEL)
        for name in ("truncated", "difficult"):
            add_element(entity, name, 0)
        bounds = add_element(entity, "bndbox")
        x, y, w, h = (int(value) for value in box)
        for name, value in (("xmin", x + 1), ("ymin", y + 1), ("xmax", x + w), ("ymax", y + h)):  # 1-based
            add_element(bounds, name, value)
        polygon = add_element(entity, "polygon")
        for n, point in enumerate(joined(rings_of(forest.masks[k], tolerance)) + 1, 1):
            add_element(polygon, f"x{n}", point[0])
            add_element(polygon, f"y{n}", point[1])
        attributes = add_element(entity, "attributes")
        for name, entry in zip(_ATTRIBUTES, (k + 1, parent, round(float(forest.scores[k]), DIGITS))):
            attribute = add_element(attributes, "attribute")
            add_element(attribute, "name", name)
            add_element(attribute, "value", entry)
    return root


def read(source: Path, options: Options) -> list[Photo]:
    """Read the xml files of a folder, or of its Annotations/: polygons, or boxes if there are none.

    Raises:
        InputError: no xml file, or an invalid one.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    paths = sorted(folder.rglob("*.xml"))
    if not paths:
        raise InputError(f"no xml file in {str(folder)!r}")
    return [_read_file(path) for path in paths]


def _read_file(path: Path) -> Photo:
    root = read_xml(path)
    name = root.findtext("filename") or path.stem
    try:
        size = int(root.findtext("size/height", "")), int(root.findtext("size/width", ""))
        entities = []
        for entity in root.iter("object"):
            facts = {a.findtext("name"): a.findtext("value") for a in entity.iter("attribute")}
            key, parent = (int(number(facts[fact]) or 0) if facts.get(fact) else None for fact in ("id", "parent"))
            label = entity.findtext("name", LABEL)
            entities.append(Entity(_read_mask(entity, size), key, parent, number(facts.get("score")), label))
    except (ValueError, TypeError) as error:
        raise InputError(f"{str(path)!r}: {error}") from error
    return build_photo(name, size, entities)


def _read_mask(entity: ElementTree.Element, size: tuple[int, int]) -> RLE:
    polygon = entity.find("polygon")
    if polygon is not None:
        values = [float(child.text or "") for child in polygon]
        return fill([np.array(values).reshape(-1, 2) - 1], size)
    left, top, right, bottom = (float(entity.findtext(f"bndbox/{n}", "")) - 1 for n in ("xmin", "ymin", "xmax", "ymax"))
    return fill([np.array([(left, top), (right, top), (right, bottom), (left, bottom)])], size)


def _palette() -> list[int]:
    """The colours of VOC: bit n of an index, taken three at a time, sets bit 7 - n of red, green and blue."""
    index = np.arange(256)
    channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, 1).ravel().tolist()

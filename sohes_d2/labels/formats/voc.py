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
from ...structures.files import write_picture, write_text
from ...structures.forest import Forest
from ...structures.masks import RLE, decode_mask
from .base import (
    FACTS,
    LABEL,
    Entity,
    Options,
    Photo,
    add_element,
    add_elements,
    build_photo,
    copy_photos,
    invalid,
    mask_facts,
    photo_size,
    read_xml,
    stems_of,
    with_folder,
    write_xml,
)
from .shapes import fill, fill_box, joined, rings_of

IS_FOLDER = True
LOSSES = "outlines are polygons within the tolerance, several components are joined; maps of instances have no overlaps"
MAX_INSTANCES = 254  # 0 is background, 255 is "void"


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write Annotations, SegmentationObject, SegmentationClass, ImageSets, and JPEGImages if the photos are known."""
    stems = stems_of(photos)
    for photo, stem in zip(photos, stems):
        objects = instance_map(photo.forest)
        for folder, values in (("SegmentationObject", objects), ("SegmentationClass", objects > 0)):
            picture = Image.fromarray(values.astype(np.uint8), "P")
            picture.putpalette(_palette())
            write_picture(with_folder(output / folder / f"{stem}.png"), picture, "PNG")
        write_xml(with_folder(output / "Annotations" / f"{stem}.xml"), _annotation(photo, options.tolerance))
    for task in ("Main", "Segmentation"):
        path = output / "ImageSets" / task / "train.txt"
        write_text(with_folder(path), "".join(f"{stem}\n" for stem in stems))
    colour = ",".join(map(str, _palette()[3:6]))
    write_text(output / "labelmap.txt", f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{LABEL}:{colour}::\n")
    copy_photos(photos, options.images, output / "JPEGImages")


def instance_map(forest: Forest) -> np.ndarray:
    """(H, W) uint8: number of the smallest included mask at each pixel, from 1 in forest order; 0 without mask."""
    best = np.argsort(-forest.scores, kind="stable")[:MAX_INSTANCES]
    values = np.zeros(forest.image_size, np.uint8)
    numbers = {int(k): n for n, k in enumerate(sorted(best), 1)}
    for k in sorted(numbers, key=lambda k: -int(forest.areas[k])):
        values[decode_mask(forest.masks[k])] = numbers[k]
    return values


def _annotation(photo: Photo, tolerance: float) -> ElementTree.Element:
    forest = photo.forest
    height, width = forest.image_size
    root = ElementTree.Element("annotation")
    add_elements(root, folder="VOC", filename=photo.file_name)
    add_elements(add_element(root, "size"), width=width, height=height, depth=3)
    add_element(root, "segmented", 1)
    for mask, box, facts in zip(forest.masks, forest.boxes.astype(int), mask_facts(forest)):
        entity = add_element(root, "object")
        add_elements(entity, name=LABEL, truncated=0, difficult=0)
        x, y, w, h = box
        add_elements(add_element(entity, "bndbox"), xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)  # 1-based
        polygon = add_element(entity, "polygon")
        for n, (x, y) in enumerate(joined(rings_of(mask, tolerance)) + 1, 1):
            add_elements(polygon, **{f"x{n}": x, f"y{n}": y})
        attributes = add_element(entity, "attributes")
        for name, value in zip(FACTS, facts):
            add_elements(add_element(attributes, "attribute"), name=name, value=value)
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
    where = repr(str(path))
    size = photo_size(root.findtext("size/height"), root.findtext("size/width"), where)
    entities = []
    with invalid(where):
        for entity in root.iter("object"):
            facts = {a.findtext("name"): a.findtext("value") for a in entity.iter("attribute")}
            entities.append(Entity.from_facts(_read_mask(entity, size), facts, entity.findtext("name", LABEL)))
    return build_photo(name, size, entities)


def _read_mask(entity: ElementTree.Element, size: tuple[int, int]) -> RLE:
    polygon = entity.find("polygon")
    if polygon is not None:
        values = [float(child.text or "") for child in polygon]
        return fill([np.array(values).reshape(-1, 2) - 1], size)
    left, top, right, bottom = (float(entity.findtext(f"bndbox/{n}", "")) - 1 for n in ("xmin", "ymin", "xmax", "ymax"))
    return fill_box(left, top, right, bottom, size)


def _palette() -> list[int]:
    """The colours of VOC: bit n of an index, taken three at a time, sets bit 7 - n of red, green and blue."""
    index = np.arange(256)
    channels = [sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
    return np.stack(channels, 1).ravel().tolist()

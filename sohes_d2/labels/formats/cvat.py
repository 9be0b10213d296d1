"""CVAT for images 1.1: one xml file, masks as run lengths.

Kept: exact masks; score, id and parent as attributes of each mask; trees as groups, depths as z_order.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...errors import InputError
from ...structures.forest import Forest
from ...structures.hierarchy import NO_PARENT
from ...structures.masks import RLE, encode_window
from .base import (
    FACTS,
    LABEL,
    Entity,
    Options,
    Photo,
    add_element,
    add_elements,
    build_photo,
    invalid,
    mask_facts,
    photo_size,
    read_xml,
    write_xml,
)
from .shapes import crops, fill, fill_box

IS_FOLDER = False
LOSSES = "nothing is lost"


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write an annotations.xml, which CVAT imports as "CVAT 1.1"."""
    root = ElementTree.Element("annotations")
    add_element(root, "version", "1.1")
    label = add_element(add_element(add_element(add_element(root, "meta"), "task"), "labels"), "label")
    add_element(label, "name", LABEL)
    attributes = add_element(label, "attributes")
    for name in FACTS:
        attribute = add_element(attributes, "attribute")
        add_elements(attribute, name=name, mutable="False", input_type="text", default_value="", values="")
    for k, photo in enumerate(photos):
        height, width = photo.forest.image_size
        image = add_element(root, "image", id=k, name=photo.file_name, width=width, height=height)
        _add_masks(image, photo.forest)
    write_xml(output, root)


def _add_masks(image: ElementTree.Element, forest: Forest) -> None:
    masks = zip(crops(forest.masks), mask_facts(forest), _roots(forest), forest.depths())
    for ((left, top, width, height), inside), facts, root, depth in masks:
        where = {"left": left, "top": top, "width": width, "height": height}
        runs = ", ".join(map(str, _row_runs(inside)))
        more = {"group_id": root + 1, "z_order": depth}
        mask = add_element(image, "mask", label=LABEL, source="auto", occluded=0, rle=runs, **where, **more)
        for name, value in zip(FACTS, facts):
            add_element(mask, "attribute", value, name=name)


def read(source: Path, options: Options) -> list[Photo]:
    """Read an annotations.xml: masks, polygons and boxes; tracks of videos are ignored.

    Raises:
        InputError: not a CVAT file, or an invalid image, which the message names.
    """
    root = read_xml(source)
    if root.tag != "annotations":
        raise InputError(f"{str(source)!r} is not a CVAT file: its root is <{root.tag}>, not <annotations>")
    photos = []
    for image in root.iter("image"):
        name = image.get("name", "")
        where = f"{str(source)!r}: image {name!r}"
        size = photo_size(image.get("height"), image.get("width"), where)
        with invalid(where):
            entities = [_read_shape(shape, size) for shape in image if shape.tag in ("mask", "polygon", "box")]
        photos.append(build_photo(name, size, entities))
    return photos


def _read_shape(shape: ElementTree.Element, size: tuple[int, int]) -> Entity:
    facts = {child.get("name"): child.text for child in shape.iter("attribute")}
    return Entity.from_facts(_read_mask(shape, size), facts, shape.get("label", LABEL))


def _read_mask(shape: ElementTree.Element, size: tuple[int, int]) -> RLE:
    if shape.tag == "mask":
        left, top, width, height = (int(shape.get(name, "")) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in shape.get("rle", "").split(",")]
        if min(runs) < 0 or sum(runs) != width * height or not 0 < width * height <= size[0] * size[1]:
            raise ValueError(f"the run lengths of a mask do not fill its box of {width} x {height}")
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return encode_window(inside, (top, left), size)
    if shape.tag == "box":
        x0, y0, x1, y1 = (float(shape.get(name, "")) for name in ("xtl", "ytl", "xbr", "ybr"))
        return fill_box(x0, y0, x1 - 1, y1 - 1, size)
    points = [[float(value) for value in point.split(",")] for point in shape.get("points", "").split(";")]
    return fill([np.array(points) - 0.5], size)  # CVAT's coordinates start at the corner of a pixel


def _row_runs(inside: np.ndarray) -> list[int]:
    """Row-major run lengths, starting with a run outside the mask."""
    flat = np.concatenate([[False], inside.ravel()])
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [inside.size]])
    return np.diff(bounds).tolist()


def _roots(forest: Forest) -> np.ndarray:
    roots = np.arange(len(forest))
    while (above := forest.parents[roots] != NO_PARENT).any():
        roots[above] = forest.parents[roots[above]]
    return roots

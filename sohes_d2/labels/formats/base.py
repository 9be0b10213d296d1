"""Types and functions shared by all formats: a photo with its forest and file name."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...errors import InputError
from ...structures.files import atomic_writer
from ...structures.forest import Forest
from ...structures.hierarchy import NO_PARENT
from ...structures.masks import RLE, mask_areas
from ...structures.run_lengths import run_lengths

LABEL = "entity"  # the class of every written mask
DIGITS = 6  # decimal digits of a score


@dataclass
class Photo:
    """The labels of a photo.

    Attributes:
        file_name: relative to the folder of photos, with forward slashes.
        forest: masks, parents and scores.
        has_parents: whether the parents are known; otherwise all masks are wholes.
        has_scores: whether the scores are known; otherwise they are 1.
    """

    file_name: str
    forest: Forest
    has_parents: bool = True
    has_scores: bool = True


@dataclass(frozen=True)
class Options:
    """Options for writing and reading labels.

    Attributes:
        tolerance: allowed deviation of a polygon from the outline in pixels; 0: exact at pixel centres.
        images: the folder of photos; None if unknown.
        image_prefix: prefix of file names for tools that need a URL.
    """

    tolerance: float = 0.5
    images: Path | None = None
    image_prefix: str = ""


@dataclass
class Entity:
    """A mask as read from a file, with identifiers instead of list indices.

    Attributes:
        mask: compressed RLE.
        key: identifier within the photo; None if it has none.
        parent: key of its parent; None or an unknown key for a whole.
        score: its score; None if the file has none.
        label: its class.
    """

    mask: RLE
    key: Any = None
    parent: Any = None
    score: float | None = None
    label: str = LABEL


def build_photo(file_name: str, size: tuple[int, int], entities: Sequence[Entity]) -> Photo:
    """Build a photo from entities: resolve parents, skip empty masks, store classes other than "entity" as sources.

    Args:
        file_name: file name of the photo.
        size: (H, W).
        entities: the entities, in order.

    Raises:
        InputError: the parents form a cycle.
    """
    areas = mask_areas([entity.mask for entity in entities]) if entities else np.zeros(0)
    entities = [entity for entity, area in zip(entities, areas) if area]
    places = {entity.key: k for k, entity in enumerate(entities) if entity.key is not None}
    try:
        forest = Forest(
            [entity.mask for entity in entities],
            [places.get(entity.parent, NO_PARENT) if entity.parent is not None else NO_PARENT for entity in entities],
            size,
            scores=[1.0 if entity.score is None else min(max(entity.score, 0.0), 1.0) for entity in entities],
            sources=["" if entity.label == LABEL else entity.label for entity in entities],
            file_name=file_name,
        )
        forest.depths()
    except ValueError as error:
        raise InputError(f"{file_name}: {error}") from error
    return Photo(
        file_name,
        forest,
        has_parents=any(entity.key is not None for entity in entities),
        has_scores=any(entity.score is not None for entity in entities),
    )


def parent_keys(forest: Forest) -> list[int]:
    """Keys of parents, where a mask's key is its index + 1; 0 for a whole."""
    return [int(parent) + 1 if parent != NO_PARENT else 0 for parent in forest.parents]


def cropped(mask: RLE, box: Sequence[int]) -> np.ndarray:
    """(h, w) bool, the mask inside a box; pixels are decoded only for the columns of the box.

    Args:
        mask: compressed RLE.
        box: (x, y, w, h) in pixels, inside the image.
    """
    height = mask["size"][0]
    left, top, w, h = box
    ends = np.clip(run_lengths(mask["counts"]).cumsum() - left * height, 0, w * height)
    columns = np.repeat(np.arange(len(ends)) % 2 == 1, np.diff(ends, prepend=0))
    columns = np.pad(columns, (0, w * height - len(columns))) if len(columns) < w * height else columns
    return columns.reshape(w, height).T[top : top + h]


def number(text: Any) -> float | None:
    """Parse a finite number, or return None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def stem_of(file_name: str) -> str:
    """Path of a photo's label file, relative to the folder and without suffix.

    Raises:
        InputError: the name is empty or points outside the folder.
    """
    path = PurePosixPath(file_name)
    if path.is_absolute() or ".." in path.parts or not path.name:
        raise InputError(f"file name {file_name!r} points outside the folder; make it relative to the photos")
    return path.with_suffix("").as_posix()


def check_stems(photos: Sequence[Photo]) -> None:
    """Check that no two photos share a label file.

    Raises:
        InputError: two names differ only in their suffixes, or one points outside the folder.
    """
    seen: dict[str, str] = {}
    for photo in photos:
        other = seen.setdefault(stem_of(photo.file_name), photo.file_name)
        if other != photo.file_name:
            raise InputError(f"{other!r} and {photo.file_name!r} would share a label file; rename one of them")


def copy_photos(photos: Sequence[Photo], images: Path | None, folder: Path) -> None:
    """Copy the photos from ``images``, unless it is None, to ``folder``."""
    if images is None:
        return
    for photo in photos:
        stem_of(photo.file_name)
        target = folder / photo.file_name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(images / photo.file_name, "rb") as source, atomic_writer(target) as file:
            shutil.copyfileobj(source, file)


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """Read the root of an xml file. Document type declarations are rejected: their entities can expand without bound.

    Raises:
        InputError: the file cannot be read, is not xml, or has a document type declaration.
    """
    try:
        data = Path(path).read_bytes()
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise InputError(f"{str(path)!r} has a document type declaration, which is not supported; remove it")
        return ElementTree.fromstring(data)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except ElementTree.ParseError as error:
        raise InputError(f"{str(path)!r} is not xml: {error}") from error


def add_element(parent: ElementTree.Element, tag: str, text: Any = None, /, **attributes: Any) -> ElementTree.Element:
    """Add a child element with text and attributes."""
    element = ElementTree.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    if text is not None:
        element.text = str(text)
    return element


def xml_bytes(root: ElementTree.Element) -> bytes:
    """Serialize a root element as indented UTF-8 xml."""
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def get(record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """Get a value of a json object.

    Raises:
        InputError: it is missing or has another type.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        raise InputError(f"{where} has no usable {key!r}")
    return value

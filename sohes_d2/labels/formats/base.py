"""Types and functions shared by all formats: a photo with its forest and file name."""

from __future__ import annotations

import os
import shutil
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ... import __version__
from ...errors import InputError
from ...structures.entity import Selection
from ...structures.files import atomic_writer, write_bytes
from ...structures.forest import Forest
from ...structures.hierarchy import NO_PARENT
from ...structures.masks import RLE, mask_areas
from ..forests import read_forest
from ..reader import LabelFile
from ..schema import Problems, read_size
from ..writer import dump_line, image_record, write_label_file

LABEL = "entity"  # the class of every written mask
FACTS = ("id", "parent", "score")  # names of the values of `mask_facts` in files
_DIGITS = 6  # decimal digits of a score
_UNUSABLE = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError, EOFError, zlib.error)


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

    @classmethod
    def from_facts(cls, mask: RLE, facts: Mapping[Any, str | None], label: str) -> Entity:
        """Parse the texts of `FACTS`; missing and empty ones are unknown."""
        key, parent = (int(number(facts[name]) or 0) if facts.get(name) else None for name in ("id", "parent"))
        return cls(mask, key, parent, number(facts.get("score")), label)


def mask_facts(forest: Forest) -> list[tuple[int, int, float]]:
    """(id, parent, score) of each mask: the id is its index + 1, the parent is 0 for a whole."""
    parents = np.where(forest.parents == NO_PARENT, 0, forest.parents + 1).tolist()
    scores = [round(float(score), _DIGITS) for score in forest.scores]
    return list(zip(range(1, len(forest) + 1), parents, scores))


def build_photo(file_name: str, size: tuple[int, int], entities: Sequence[Entity]) -> Photo:
    """Build a photo from entities: resolve parents, skip empty masks, store classes other than "entity" as sources.

    Args:
        file_name: file name of the photo.
        size: (H, W).
        entities: the entities, in order.

    Raises:
        InputError: the parents form a cycle.
    """
    areas = mask_areas([entity.mask for entity in entities])
    entities = [entity for entity, area in zip(entities, areas) if area]
    with invalid(file_name):
        places = {entity.key: k for k, entity in enumerate(entities) if entity.key is not None}
        forest = Forest(
            [entity.mask for entity in entities],
            [places.get(entity.parent, NO_PARENT) for entity in entities],
            size,
            scores=[1.0 if entity.score is None else min(max(entity.score, 0.0), 1.0) for entity in entities],
            sources=["" if entity.label == LABEL else entity.label for entity in entities],
            file_name=file_name,
        )
        forest.depths()
    return Photo(
        file_name,
        forest,
        has_parents=any(entity.key is not None for entity in entities),
        has_scores=any(entity.score is not None for entity in entities),
    )


def read_photos(file: LabelFile, selection: Selection, problems: Problems) -> list[Photo]:
    """Read the photos of a label file, with the selected masks.

    Args:
        file: a COCO document.
        selection: which masks to keep.
        problems: collects skipped masks.

    Raises:
        InputError: an image without size.
    """
    photos = []
    for image_id, record in file.images.items():
        name = record.get("file_name", f"{image_id}.jpg")
        forest, kept = read_forest(file.by_image[image_id], file.size(image_id), problems, name)
        has_scores = any("score" in file.by_image[image_id][k] for k in kept)
        photos.append(Photo(name, selection(forest), file.has_hierarchy, has_scores))
    return photos


def write_photos(path: str | os.PathLike[str], photos: Sequence[Photo], origin: str) -> None:
    """Write a label file; unknown parents and scores are omitted.

    Args:
        path: the json to write.
        photos: the photos in order; image ids count from 1.
        origin: origin of the labels, for ``info``.
    """
    images: list[list[bytes]] = []
    annotations: list[list[bytes]] = []
    for image_id, photo in enumerate(photos, 1):
        images.append([dump_line(image_record(image_id, photo.file_name, *photo.forest.image_size))])
        unknown = ([] if photo.has_parents else ["parent_id", "depth"]) + ([] if photo.has_scores else ["score"])
        for annotation in photo.forest.to_coco(image_id, len(annotations) + 1):
            annotations.append([dump_line({key: value for key, value in annotation.items() if key not in unknown})])
    info = {"description": f"Converted from {origin} by SOHES-D2", "sohes_d2": __version__}
    write_label_file(os.fspath(path), info, {"images": images, "annotations": annotations, "skipped": []})


@contextmanager
def invalid(where: str) -> Iterator[None]:
    """Context manager that converts errors by unusable values to an InputError that begins with ``where``."""
    try:
        yield
    except InputError:
        raise
    except _UNUSABLE as error:
        raise InputError(f"{where}: {error}") from error


def number(text: Any) -> float | None:
    """Parse a finite number, or return None."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def get(record: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """Get a value of a json object.

    Raises:
        InputError: it is missing or has another type.
    """
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        raise InputError(f"{where} has no usable {key!r}")
    return value


def photo_size(height: Any, width: Any, where: str) -> tuple[int, int]:
    """Validate the size of a photo, numbers or text; returns (H, W).

    Raises:
        InputError: not positive whole numbers, or too large.
    """
    size = read_size({"height": str(height).strip(), "width": str(width).strip()})
    if size is None:
        raise InputError(f"{where} has no usable height and width, got {height!r:.40} and {width!r:.40}")
    return size


def stems_of(photos: Sequence[Photo]) -> list[str]:
    """Path of each photo's label file, relative to the folder and without suffix.

    Raises:
        InputError: a name is empty or points outside the folder, or two names differ only in their suffixes.
    """
    stems: list[str] = []
    names: dict[str, str] = {}
    for photo in photos:
        path = PurePosixPath(photo.file_name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise InputError(f"file name {photo.file_name!r} points outside the folder; make it relative to the photos")
        stems.append(path.with_suffix("").as_posix())
        other = names.setdefault(stems[-1], photo.file_name)
        if other != photo.file_name:
            raise InputError(f"{other!r} and {photo.file_name!r} would share a label file; rename one of them")
    return stems


def with_folder(path: Path) -> Path:
    """The path of a file, whose folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def copy_photos(photos: Sequence[Photo], images: Path | None, folder: Path) -> None:
    """Copy the photos, with names checked by `stems_of`, from ``images``, unless it is None, to ``folder``."""
    if images is None:
        return
    for photo in photos:
        target = with_folder(folder / photo.file_name)
        with open(images / photo.file_name, "rb") as source, atomic_writer(target) as file:
            shutil.copyfileobj(source, file)


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """Read the root of an xml file. Document type declarations are rejected: their entities can expand without bound.

    Raises:
        InputError: the file cannot be read, is not xml, or has a document type declaration.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    try:
        return ElementTree.fromstring(data, ElementTree.XMLParser(target=_PlainTree()))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: an unknown encoding
        raise InputError(f"{str(path)!r} is not xml: {error}") from error


class _PlainTree(ElementTree.TreeBuilder):
    def doctype(self, *declaration: Any) -> None:
        raise ValueError("it has a document type declaration, which is not supported; remove it")


def write_xml(path: Path, root: ElementTree.Element) -> None:
    """Write a root element as indented UTF-8 xml."""
    ElementTree.indent(root)
    write_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def add_element(parent: ElementTree.Element, tag: str, text: Any = None, /, **attributes: Any) -> ElementTree.Element:
    """Add a child element with text and attributes."""
    element = ElementTree.SubElement(parent, tag, {key: str(value) for key, value in attributes.items()})
    if text is not None:
        element.text = str(text)
    return element


def add_elements(parent: ElementTree.Element, **texts: Any) -> None:
    """Add a child element with text for each name."""
    for tag, text in texts.items():
        add_element(parent, tag, text)

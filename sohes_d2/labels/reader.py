"""Readers of label files of any origin: COCO documents, result lists, and those of this project.

`read_label_file` reads a file into memory; `LabelStream` keeps the annotations of a large file on disk. Both return the
records of `schema`, and both reject files that would give wrong results: ambiguous ids, two records of one image file.
"""

from __future__ import annotations

import json
import logging
import os
import posixpath
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import numpy as np

from ..errors import CorruptFileError, InputError, RecordError
from .scanner import RESULTS, Record, iterate_records
from .schema import (
    Annotation,
    Id,
    ImageRecord,
    Problems,
    annotation_place,
    check_ids,
    image_size,
    read_annotation,
    read_id,
    read_image,
)

logger = logging.getLogger(__name__)

LabelFileT = TypeVar("LabelFileT", bound="LabelFile")

# Keys by which `match_images` compares file names, and their descriptions.
PARTS: dict[str, Callable[[str], str]] = {
    "name": str,
    "basename": lambda name: PurePosixPath(name.replace("\\", "/")).name,
}
DESCRIPTIONS = {"id": "image id", "name": "file name", "basename": "last part of the file name"}


@dataclass
class LabelFile:
    """Content of a label file.

    Attributes:
        path: path of the file, for messages.
        images: image id -> record, in file order; empty for a result list.
        annotations: annotations in file order, with unique ids per image.
        categories: class id -> name.
        lists: top-level keys whose value is a list.
        problems: skipped records (without usable id, flag or known image), and unusable names of images.
    """

    path: str
    images: dict[Id, ImageRecord] = field(default_factory=dict)
    annotations: list[Annotation] = field(default_factory=list)
    categories: dict[Id, str] = field(default_factory=dict)
    lists: set[str] = field(default_factory=set)
    problems: Problems = field(default_factory=Problems)

    @classmethod
    def read(
        cls: type[LabelFileT], path: str | os.PathLike, strict: bool = False, results_allowed: bool = False
    ) -> LabelFileT:
        """Read a COCO document or a result list into memory.

        Args:
            path: the file.
            strict: reject a file with an unusable annotation, for evaluation, where skipping the annotation would
                change the results.
            results_allowed: also accept a result list.

        Raises:
            InputError: the file cannot be read, is neither of these, or is ambiguous (an image id or a file name that
                occurs twice, ids that `parent_id` cannot refer to); with ``strict`` also an unusable annotation.
            CorruptFileError: damaged or truncated.
        """
        file = cls(os.fspath(path), problems=Problems(os.fspath(path) if strict else ""))
        found = list(file.scan(Problems() if strict else file.problems, results_allowed))
        for record, annotation in found:  # after all images are read
            if file.is_result_list or annotation["image_id"] in file.images:
                file.annotations.append(annotation)
            else:
                file.problems.add(annotation_place(annotation, record.index), _stray(annotation["image_id"]))
        for image_id, mine in file.by_image.items():
            check_ids(mine, f"{file.path}: image {image_id!r}")
        return file

    def scan(self, names: Problems, results_allowed: bool = False) -> Iterator[tuple[Record, Annotation]]:
        """Read the file: yield its usable annotations, store everything else, and check it at the end.

        Args:
            names: collects unusable names of images.
            results_allowed: also accept a result list.
        """
        zeros: set[str] = set()  # fields that are 0 in any annotation
        for record in self.scan_records(names, results_allowed):
            with self.problems.at(annotation_place(record.value, record.index)):
                annotation = read_annotation(record.value)
                zeros.update(key for key in ("id", "parent_id") if annotation.get(key) == 0)
                yield record, annotation
        if len(zeros) == 2:  # a child of annotation 0 cannot be distinguished from a root
            raise InputError(
                f"{self.path}: annotation id 0 together with parent_id: 0 stands for no parent; number annotations "
                "from 1"
            )

    def scan_records(self, names: Problems, results_allowed: bool = False) -> Iterator[Record]:
        """Like `scan`, but yield the annotations unchecked."""
        for record in iterate_records(self.path):
            key, value, in_list = record.key, record.value, record.index >= 0
            if key == RESULTS and not results_allowed:
                raise InputError(
                    f"{self.path} is a result list, which has no image records; pass a COCO file with 'images'"
                )
            if in_list or record.opens_list:
                self.lists.add(key)
            elif key in ("images", "annotations") and value is not None:
                raise InputError(f"{self.path}: '{key}' is not a list")
            if in_list and key == "images":
                image = read_image(value, names, f"{self.path}: image number {record.index + 1}")
                if self.images.setdefault(image["id"], image) is not image:
                    raise InputError(f"{self.path}: two images have the id {image['id']!r}; make ids unique")
            elif in_list and key == "categories" and isinstance(value, dict):
                with suppress(RecordError):
                    number = read_id(value.get("id"))
                    self.categories[number] = str(value.get("name", number))
            elif in_list and key in (RESULTS, "annotations"):
                yield record
        self._check_images()

    def _check_images(self) -> None:
        """Check that the file has a list of images, and at most one record per image file."""
        if not self.is_result_list and "images" not in self.lists:
            raise InputError(f"{self.path} is not a COCO data set: it has no list 'images'")
        names: dict[str, Id] = {}
        for image_id, image in self.images.items():
            name = image.get("file_name")
            other = names.setdefault(posixpath.normpath(name.replace("\\", "/")), image_id) if name else image_id
            if other != image_id:
                raise InputError(
                    f"{self.path}: images {other!r} and {image_id!r} are both {name!r}; keep one record per file"
                )

    @property
    def is_result_list(self) -> bool:
        """Whether the file is a result list, whose image ids refer to another file."""
        return RESULTS in self.lists

    @property
    def has_annotations(self) -> bool:
        """False for a document without `annotations`, such as a test set with hidden ground truth."""
        return self.is_result_list or "annotations" in self.lists

    @cached_property
    def by_image(self) -> dict[Id, list[Annotation]]:
        """Annotations by image id; for a result list, only of images that have any."""
        return group_by_image(self.annotations, self.images)

    @property
    def has_hierarchy(self) -> bool:
        """Whether any annotation has ``parent_id``."""
        return any("parent_id" in annotation for annotation in self.annotations)

    def size(self, image_id: Id) -> tuple[int, int]:
        """(H, W) of an image in pixels.

        Raises:
            InputError: its record has no size.
        """
        return image_size(self.images[image_id], self.path)

    def restricted(self: LabelFileT, image_ids: Iterable[Id]) -> LabelFileT:
        """Restrict the file to these images.

        Raises:
            InputError: an image that is not in the file.
        """
        chosen = set(image_ids)
        unknown = chosen - set(self.images)
        if unknown:
            raise InputError(f"image {next(iter(unknown))!r} is not in {self.path}")
        return replace(
            self,
            images={image_id: image for image_id, image in self.images.items() if image_id in chosen},
            annotations=[annotation for annotation in self.annotations if annotation["image_id"] in chosen],
        )

    def for_photos(self: LabelFileT, images: str | os.PathLike[str]) -> tuple[Path, LabelFileT]:
        """Return the base folder of the file names, and this file, restricted to one record for a single photo.

        Args:
            images: the folder of photos, or one photo in it.

        Raises:
            InputError: the file has no image with the photo's name.
        """
        photo = Path(images)
        if not photo.is_file():
            return photo, self
        photo = photo.absolute()
        for image_id, record in self.images.items():
            name = PurePosixPath(record.get("file_name", ""))
            if name.parts and photo.parts[-len(name.parts) :] == name.parts:
                return photo.parents[len(name.parts) - 1], self.restricted([image_id])
        raise InputError(f"{self.path} has no image {photo.name!r}; name the folder of its photos instead")


read_label_file = LabelFile.read


def read_images(path: str | os.PathLike) -> list[ImageRecord]:
    """Read only the image records of a COCO document, in order; annotations are optional and ignored.

    Raises:
        InputError, CorruptFileError: see `read_label_file`; also for a result list.
    """
    file = LabelFile(os.fspath(path))
    deque(file.scan_records(file.problems), maxlen=0)  # stores the images
    report(file.path, file.problems)
    return list(file.images.values())


class LabelStream:
    """A COCO document read image by image, with annotations kept on disk.

    Memory: the image records and 20 bytes per annotation.

    Attributes:
        path: the file.
        images: image records, sorted by id.
        problems: skipped records.
    """

    def __init__(self, path: str | os.PathLike, problems: Problems | None = None):
        """Scan the file once.

        Args:
            path: the file.
            problems: collects skipped records; by default a new object.

        Raises:
            InputError, CorruptFileError: see `read_label_file`; also for a result list.
        """
        self.path = os.fspath(path)
        self.problems = Problems() if problems is None else problems
        file = LabelFile(self.path, problems=self.problems)
        codes: dict[Id, int] = {}  # image id -> number; annotations may precede the images
        numbers, offsets, lengths = array("i"), array("q"), array("i")
        for record, annotation in file.scan(self.problems):
            numbers.append(codes.setdefault(annotation["image_id"], len(codes)))
            offsets.append(record.offset)
            lengths.append(record.length)
        if not file.has_annotations:
            raise InputError(f"{self.path} has no `annotations`: it is not a COCO json with annotations")
        for image_id in codes.keys() - file.images.keys():
            self.problems.add(f"image {image_id!r:.40}", _stray(image_id))
        self.images = sorted(file.images.values(), key=lambda image: (isinstance(image["id"], str), image["id"]))
        order = np.argsort(np.asarray(numbers, np.int32), kind="stable")
        self._codes = codes
        self._numbers = np.asarray(numbers, np.int32)[order]
        self._offsets, self._lengths = np.asarray(offsets, np.int64)[order], np.asarray(lengths, np.int32)[order]
        self._file = open(self.path, "rb")

    def annotations(self, image_id: Id) -> list[Annotation]:
        """The annotations of an image in file order; empty if it has none.

        Raises:
            InputError: ambiguous ids (see `schema.check_ids`).
        """
        code = self._codes.get(image_id, -1)
        mine = slice(*np.searchsorted(self._numbers, [code, code + 1]))
        places = zip(self._lengths[mine].tolist(), self._offsets[mine].tolist())
        try:
            found = [read_annotation(json.loads(os.pread(self._file.fileno(), *place))) for place in places]
        except ValueError as error:
            raise CorruptFileError(f"{self.path} was changed while it was read; start again") from error
        check_ids(found, f"{self.path}: image {image_id!r}")
        return found

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def match_images(
    file: LabelFile, other: LabelFile, parts: Sequence[str] = tuple(PARTS)
) -> tuple[dict[Id, Id | None], str]:
    """Match images of two label files: ids of ``file`` -> ids of ``other`` or None, and the key: "id" or one of PARTS.

    Ids are used only if a file has no names, such as a result list, since every tool counts images from 1.

    Args:
        file, other: the files.
        parts: keys of PARTS, in order of preference; a later one is used if it matches more images and is unique in
            both files. A single key is always used; an empty sequence matches by id.

    Raises:
        InputError: the first part is not unique in a file.
    """
    named = all(any("file_name" in image for image in side.images.values()) for side in (file, other))
    if not parts or (len(parts) > 1 and not named):
        return {i: i if i in other.by_image else None for i in file.by_image}, "id"
    matches: dict[Id, Id] = {}
    chosen = parts[0]
    for part in parts:
        try:
            mine, theirs = (_ids_by_name(side, part) for side in (file, other))
        except InputError:
            if part == parts[0]:
                raise
            continue
        found = {i: theirs[name] for name, i in mine.items() if name in theirs}
        if len(found) > len(matches):  # ties: prefer full names
            matches, chosen = found, part
    return {i: matches.get(i) for i in file.by_image}, chosen


def _ids_by_name(file: LabelFile, part: str) -> dict[str, Id]:
    ids: dict[str, Id] = {}
    for image_id, image in file.images.items():
        if "file_name" not in image:
            continue
        name = PARTS[part](image["file_name"])
        if ids.setdefault(name, image_id) != image_id:
            raise InputError(
                f"{file.path}: {name!r} occurs twice as {DESCRIPTIONS[part]}; repair the names, or match by id"
            )
    return ids


def group_by_image(annotations: Iterable[Any], image_ids: Iterable[Id]) -> dict[Id, list[Any]]:
    """Group annotations by image id, in order; images without annotations have an empty list."""
    groups: dict[Id, list[Any]] = {image_id: [] for image_id in image_ids}
    for annotation in annotations:
        groups.setdefault(annotation["image_id"], []).append(annotation)
    return groups


def report(path: str, problems: Problems) -> None:
    """Log one warning that summarizes skipped records, if any."""
    if problems:
        logger.warning("%s: %s", path, problems.summary())


def _stray(image_id: Any) -> RecordError:
    return RecordError(f"it belongs to image {image_id!r:.40}, which the file does not have", "no such image")

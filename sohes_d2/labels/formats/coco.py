"""Conversion between label files of this project and `Photo`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ... import __version__
from ...structures.entity import Selection
from ..forests import read_forest
from ..reader import LabelFile
from ..schema import Problems
from ..writer import dump_line, image_record, write_label_file
from .base import Photo


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
        annotations = [file.by_image[image_id][k] for k in kept]
        has_scores = any("score" in annotation for annotation in annotations)
        photos.append(Photo(name, selection(forest), file.has_hierarchy, has_scores))
    return photos


def write_photos(path: str | os.PathLike[str], photos: Sequence[Photo], origin: str) -> None:
    """Write a label file; unknown parents and scores are omitted.

    Args:
        path: the json to write.
        photos: the photos in order; image ids count from 1.
        origin: origin of the labels, for ``info``.
    """
    images, annotations = [], []
    first = 1
    for image_id, photo in enumerate(photos, 1):
        images.append(dump_line(image_record(image_id, photo.file_name, *photo.forest.image_size)))
        for annotation in photo.forest.to_coco(image_id, first):
            unknown = ([] if photo.has_parents else ["parent_id", "depth"]) + ([] if photo.has_scores else ["score"])
            annotations.append(dump_line({key: value for key, value in annotation.items() if key not in unknown}))
        first += len(photo.forest)
    info = {"description": f"Converted from {origin} by SOHES-D2", "sohes_d2": __version__}
    blocks = {"images": [[line] for line in images], "annotations": [[line] for line in annotations], "skipped": []}
    write_label_file(os.fspath(path), info, blocks)

"""A folder of label files (shards): lazy reading as one data set, its index, and joining into one COCO file."""

from __future__ import annotations

import json
import os
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import CorruptFileError, InputError
from .index import ShardIndex, check_label_file, join_indices, load_index, read_info, save_index
from .scanner import readable
from .writer import (
    SECTIONS,
    copy_range,
    read_checked_json,
    read_range,
    write_checked_json,
    write_label_file,
)

MAX_IMAGES_PER_SHARD = 1000
RUN_FILE = "run.json"
INDEX_FILE = "index.json"

_SHARD = re.compile(r"shard_(\d{5,})\.json")


def shard_name(number: int) -> str:
    """File name of a shard, numbered from 0."""
    return f"shard_{number:05d}.json"


def list_shards(folder: str) -> list[int]:
    """Numbers of the finished shards in a folder, ascending."""
    return sorted(int(match.group(1)) for match in map(_SHARD.fullmatch, os.listdir(folder)) if match)


def missing_shards(folder: str) -> list[int]:
    """Numbers of the missing shards of a folder, whose run.json or index.json has their number; none without these."""
    for name in (RUN_FILE, INDEX_FILE):
        path = os.path.join(folder, name)
        if os.path.exists(path):
            try:
                count = int(read_checked_json(path)["layout"]["shards"])
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptFileError(
                    f"{path!r} does not contain the number of shards; delete it, and run with --resume"
                ) from error
            return sorted(set(range(count)) - set(list_shards(folder)))
    return []


def write_folder_index(folder: str, layout: dict[str, Any], writer: str = "") -> None:
    """Write index.json: the finished shards with their counts, and whether the folder is complete.

    Several jobs may write it at the same time, so it is computed again until no shard was added in the meantime.
    """
    numbers = None
    while numbers != (found := list_shards(folder)):
        numbers = found
        shards = []
        for number in numbers:
            index = load_index(os.path.join(folder, shard_name(number)))
            counts = {name: index.stats[name] for name in ("annotations", "skipped")}
            shards.append({"file": shard_name(number), "images": len(index.rows), **counts})
        complete = len(numbers) == layout["shards"]
        value = {"complete": complete, "layout": layout, "shards": shards}
        write_checked_json(os.path.join(folder, INDEX_FILE), value, writer)


class ShardedDataset(Sequence):
    """A folder of shards, or one label file, as a sequence of images whose records are read on access.

    `dataset[i]` is `{"image": image record, "annotations": [annotation records]}`. Only the indices are in memory,
    about 50 bytes per image. No file stays open.

    Attributes:
        folder: the folder, or the file.
        rows: (images,) structured array of `IMAGE_DTYPE`: ids, sizes and mask counts without reading a record.
    """

    def __init__(self, folder: str, allow_incomplete: bool = False):
        """Open a folder written by `sohes label`, or a label file of this project.

        A label file without index is scanned.

        Raises:
            InputError: shards are missing, and ``allow_incomplete`` is False.
            InputError: the folder has no shard.
            CorruptFileError: a damaged shard.
        """
        self.folder = folder
        if os.path.isfile(folder):
            self._paths, indices = [folder], [load_index(folder)]
        else:
            self._paths, indices = _open_shards(folder, allow_incomplete)
        self.rows = np.concatenate([index.rows for index in indices])
        self._starts = np.cumsum([0] + [len(index.rows) for index in indices]).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        index = int(index) % len(self)
        row = self.rows[index]
        path = self._paths[bisect_right(self._starts, index) - 1]
        image, annotations = (
            read_range(path, int(row[f"{name}_offset"]), int(row[f"{name}_length"]))
            for name in ("image", "annotations")
        )
        if zlib.crc32(annotations, zlib.crc32(image)) != row["crc32"]:
            raise CorruptFileError(
                f"{path!r} is damaged: the records of image {row['image_id']} are not those that were "
                "written there; if the file was changed while it was open, open it again, otherwise make it again"
            )
        return {"image": json.loads(image), "annotations": json.loads(b"[" + annotations + b"]")}


def merge_shards(folder: str, output: str, allow_incomplete: bool = False) -> list[ShardIndex]:
    """Join a folder of shards into one COCO file, in bounded memory. Records are copied as bytes.

    The index of the joined file is written beside it, so that `ShardedDataset` opens it without a scan.

    Args:
        folder: the folder.
        output: output file, written atomically.
        allow_incomplete: join the existing shards even if some are missing.

    Returns:
        Indices of the shards.

    Raises:
        InputError: shards are missing.
        InputError: no shard, shards of different runs, or an image in two of them.
        CorruptFileError: a damaged shard.
    """
    paths, indices = _open_shards(folder, allow_incomplete)
    for path in paths:
        with readable(path):
            check_label_file(path)
    info = read_info(paths[0])
    for path in paths[1:]:
        if read_info(path) != info:
            raise InputError(f"{path!r} comes from another configuration than {paths[0]!r}; keep one run per folder")
    ids = np.concatenate([index.rows["image_id"] for index in indices])
    if len(np.unique(ids)) < len(ids):
        raise InputError(f"two shards of {folder!r} have an image in common; keep one run per folder")

    def blocks(section: int) -> Iterator[Iterator[bytes]]:
        for path, index in zip(paths, indices):
            offset, length = index.sections[section].tolist()
            if length:
                yield copy_range(path, offset, length)

    # Until the index is saved, that of an older file is recognized as stale, because label files end with a checksum.
    sections = write_label_file(output, info, {name: blocks(section) for section, name in enumerate(SECTIONS)})
    save_index(output, join_indices(indices, sections, os.stat(output).st_size))
    return indices


def read_skipped(label_file: str) -> list[dict[str, Any]]:
    """Read the `skipped` records of a label file: images without labels, and the reasons."""
    index = load_index(label_file)
    offset, length = index.sections[SECTIONS.index("skipped")].tolist()
    return json.loads(b"[" + read_range(label_file, offset, length) + b"]")


def _open_shards(folder: str, allow_incomplete: bool) -> tuple[list[str], list[ShardIndex]]:
    if not os.path.isdir(folder):
        raise InputError(f"{folder!r} is not a folder of shards")
    numbers = list_shards(folder)
    if not numbers:
        raise InputError(f"no shard_*.json in {folder!r}; make labels with sohes label first")
    missing = missing_shards(folder)
    if missing and not allow_incomplete:
        names = ", ".join(shard_name(number) for number in missing[:10]) + (", ..." if len(missing) > 10 else "")
        raise InputError(
            f"{folder!r} lacks {len(missing)} of its shards: {names}. "
            "Run their jobs with --resume, or allow an incomplete set"
        )
    paths = [os.path.join(folder, shard_name(number)) for number in numbers]
    indices = []
    for path in paths:
        with readable(path):
            indices.append(load_index(path))
    return paths, indices

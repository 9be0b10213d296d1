"""Shared code of the `datasets/prepare_*.py` scripts: convert any source of masks to a class-agnostic COCO json.

A script lists its images (`Item`) and reads the masks of one at a time (`Scene`); `convert` does the rest. Finished
images are stored in a journal beside the output, so a killed run can be resumed, and the output is written atomically,
in the layout of `sohes_d2.labels.writer`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ...errors import InputError
from ...labels.index import scan_label_file
from ...labels.journal import ShardJournal
from ...labels.reader import LabelStream, report
from ...labels.schema import Annotation, ImageRecord, image_name, image_size, or_none, read_area, read_box
from ...labels.writer import dump_line, image_record, write_label_file
from ...structures.forest import NO_PARENT, Forest
from ...structures.images import open_image
from ...structures.masks import RLE, encode_runs, rle_from_coco

T = TypeVar("T")

# The annotation ids of image k of the list start at 1 + k times this.
ANNOTATION_ID_STRIDE = 100_000
_IMAGES_PER_UNIT = 32
_SECONDS_BETWEEN_REPORTS = 10.0


@dataclass(frozen=True)
class Item:
    """One image to convert.

    Attributes:
        image_id: its id in the output.
        file_name: its path under the image root.
        source: data that the script needs to read it.
    """

    image_id: int
    file_name: str
    source: Any = None


@dataclass
class Entity:
    """One mask of a scene.

    Attributes:
        mask: RLE of the image's size, or None if the source has no usable mask (the entity is then skipped, and its
            children are linked to its parent).
        parent: index of the parent among the scene's entities, -1 for a whole.
        iscrowd: 1 for a region of many objects, which evaluation ignores.
        area: area in the source, in pixels, which decides COCO's size class; None: that of the mask.
        bbox: box (x, y, width, height) in the source, in pixels; None: that of the mask.
        source_id: id in the source.
    """

    mask: RLE | None
    parent: int = NO_PARENT
    iscrowd: int = 0
    area: float | None = None
    bbox: Sequence[float] | None = None
    source_id: int | str | None = None


@dataclass
class Scene:
    """The masks of one image. ``image_size`` is (H, W) in pixels."""

    image_size: tuple[int, int]
    entities: list[Entity] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """Summary of a finished file.

    Attributes:
        output: the file.
        images, annotations, skipped: number of records in each list of the file; ``skipped`` are unreadable images.
        dropped: number of empty or damaged masks of the source, which are not in the file.
        depths: annotations per depth, "0" = wholes.
    """

    output: str
    images: int
    annotations: int
    skipped: int
    dropped: int
    depths: dict[str, int]

    def __str__(self) -> str:
        depths = ", ".join(f"depth {depth}: {count}" for depth, count in self.depths.items())
        return (
            f"{self.output}: {self.images} images, {self.annotations} masks ({depths}), "
            f"{self.dropped} empty or damaged masks dropped, {self.skipped} images skipped"
        )


def convert(output: str, info: dict[str, Any], items: Sequence[Item], read: Callable[[Item], Scene]) -> Summary:
    """Write the COCO json of a list of images, reading one image at a time; the progress is printed to stderr.

    An image that cannot be read is recorded under `skipped` with the reason, and the run continues.

    Args:
        output: the file to write; its folder is created.
        info: the COCO `info`; an unfinished run is continued only if it is unchanged.
        items: the images in order, with unique ids.
        read: reads the masks of an image; raises ValueError or OSError on failure.

    Raises:
        InputError: an image id occurs twice.
        FolderBusyError: another process is writing the same file.
    """
    if len({item.image_id for item in items}) != len(items):
        raise InputError("two images of the source have the same id; are two data sets unpacked into one folder?")
    os.makedirs(os.path.dirname(os.path.abspath(output)), exist_ok=True)
    digest = hashlib.sha256(dump_line(info)).hexdigest()[:12]
    journal = ShardJournal(f"{output}.{digest}.journal")
    try:
        _convert_missing(journal, items, read)
        ids = [item.image_id for item in items]
        write_label_file(output, info, journal.blocks(ids))
        dropped = sum(json.loads(block[0]).get("dropped", 0) for block in journal.blocks(ids)["images"])
    except BaseException:
        journal.close()
        raise
    journal.remove()
    index = scan_label_file(output)
    stats = index.stats
    return Summary(output, len(index.rows), stats["annotations"], stats["skipped"], dropped, stats["depth"])


def _convert_missing(journal: ShardJournal, items: Sequence[Item], read: Callable[[Item], Scene]) -> None:
    reported = time.monotonic()
    for start in range(0, len(items), _IMAGES_PER_UNIT):
        unit = items[start : start + _IMAGES_PER_UNIT]
        if all(item.image_id in journal.done for item in unit):
            continue
        lines = [_image_lines(item, read, position) for position, item in enumerate(unit, start)]
        journal.append(start // _IMAGES_PER_UNIT, lines)
        if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
            reported = time.monotonic()
            print(f"{start + len(unit)} of {len(items)} images", file=sys.stderr, flush=True)


def _image_lines(item: Item, read: Callable[[Item], Scene], position: int) -> tuple[int, bool, list[bytes]]:
    try:
        scene = read(item)
        annotations, dropped = annotation_records(scene, item.image_id, position * ANNOTATION_ID_STRIDE + 1)
    except (OSError, ValueError) as error:
        skipped = {"id": item.image_id, "file_name": item.file_name, "reason": f"{type(error).__name__}: {error}"}
        return item.image_id, True, [dump_line(skipped)]
    image = image_record(item.image_id, item.file_name, *scene.image_size)
    if dropped:
        image["dropped"] = dropped
    return item.image_id, False, [dump_line(image), *map(dump_line, annotations)]


def annotation_records(scene: Scene, image_id: int, first_id: int) -> tuple[list[dict[str, Any]], int]:
    """Return the json-ready annotations of a scene, and the number of empty or missing masks, which are dropped.

    Raises:
        ValueError: the parents form a cycle or are out of range, or a mask has another size than the image.
    """
    empty = encode_runs([scene.image_size[0] * scene.image_size[1]], scene.image_size)
    forest = Forest(
        [empty if entity.mask is None else entity.mask for entity in scene.entities],
        [entity.parent for entity in scene.entities],
        scene.image_size,
    )
    forest.check()
    present = forest.areas > 0
    records = forest.subset(present).to_coco(image_id, first_id)
    for record, index in zip(records, np.flatnonzero(present)):
        entity = scene.entities[index]
        for key in ("score", "level", "source"):  # fields of predicted masks only
            del record[key]
        record["iscrowd"] = entity.iscrowd
        if entity.area is not None:
            record["area"] = entity.area
        if entity.bbox is not None:
            record["bbox"] = list(entity.bbox)
        if entity.source_id is not None:
            record["source_id"] = entity.source_id
    return records, len(forest) - len(records)


def coco_entity(annotation: Annotation, size: tuple[int, int]) -> Entity:
    """Convert a COCO, LVIS or PACO annotation to an entity without parent.

    Polygons of one or two points are dropped if others remain. An unusable mask becomes None; an unusable area or
    box is replaced by that of the mask.

    Args:
        annotation: with `segmentation` (polygons or RLE) and optionally `area`, `bbox`, `iscrowd`, `id`.
        size: (H, W) of its image in pixels.
    """
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and all(isinstance(polygon, list) for polygon in segmentation):
        segmentation = [polygon for polygon in segmentation if len(polygon) not in (2, 4)] or segmentation
    return Entity(
        or_none(rle_from_coco, segmentation, size),
        iscrowd=annotation["iscrowd"],
        area=or_none(read_area, annotation),
        bbox=or_none(read_box, annotation),
        source_id=annotation.get("id"),
    )


def coco_file_name(image: ImageRecord) -> str:
    """Return the path of an image; with a `coco_url`, as in LVIS, its last two components, such as val2017/1.jpg.

    Raises:
        InputError: the record has neither.
    """
    if "coco_url" in image:
        return "/".join(image["coco_url"].split("/")[-2:])
    return image_name(image)


def convert_coco(
    args: Namespace,
    info: dict[str, Any],
    remedy: str,
    file_name: Callable[[ImageRecord], str] = coco_file_name,
    link_parents: Callable[[list[Annotation]], Iterable[int]] | None = None,
) -> Summary:
    """Convert a COCO json with classes to a class-agnostic one; image ids, areas and boxes are kept.

    Args:
        args: the options `annotations` (the file), `output`, `images` (their folder), `no_images` (do not check that
            they exist) and `limit` (convert only the first images by id; 0 for all), see `cli.prepare.fill_paths`.
        info: see `convert`.
        remedy: where to get missing files.
        file_name: computes the path under the folder of the images from the image record.
        link_parents: returns the parents of the annotations of one image, as indices into them; -1 for a whole.

    Raises:
        InputError: the file or images are missing, or see `convert` and `LabelStream`.
        CorruptFileError: see `LabelStream`.
    """
    require(remedy, args.annotations)
    source = LabelStream(args.annotations)
    report(args.annotations, source.problems)
    images: list[Any] = source.images[: args.limit or None]
    items = [Item(image["id"], file_name(image), image) for image in images]
    if not args.no_images:
        require_images(args.images, [item.file_name for item in items], remedy)

    def read(item: Item) -> Scene:
        size = image_size(item.source, args.annotations)
        records = source.annotations(item.image_id)
        scene = Scene(size, [coco_entity(record, size) for record in records])
        if link_parents is not None:
            for entity, parent in zip(scene.entities, link_parents(records)):
                entity.parent = parent
        return scene

    with closing(source):
        return convert(args.output, {**info, **fingerprint(args.annotations), "limit": args.limit}, items, read)


def fingerprint(path: str) -> dict[str, Any]:
    """Name and size of a source file for `info`, so that a run is not continued with another file."""
    return {"source": os.path.basename(path), "source_bytes": os.path.getsize(path)}


def require(remedy: str, *paths: str) -> None:
    """Check that files and folders exist.

    Raises:
        InputError: some are missing; the message names them and has the remedy.
    """
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}. {remedy}")


def require_images(root: str, file_names: Sequence[str], remedy: str) -> None:
    """Check that images exist under a folder.

    Raises:
        InputError: some are missing; the message has their number, the first one and the remedy.
    """
    missing = [name for name in file_names if not os.path.isfile(os.path.join(root, name))]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(file_names)} images are missing under {root!r}, the first is {missing[0]!r}. "
            f"{remedy} (--no-images converts the masks without them.)"
        )


def read_mat(path: str, kind: str, extract: Callable[[dict[str, Any]], T]) -> T:
    """Read a MATLAB file (version 7 or older).

    Args:
        path: the file.
        kind: what it should be, for messages.
        extract: computes the result from the variables.

    Raises:
        ValueError: the file is damaged, or of another kind.
        OSError: the file cannot be read.
    """
    from scipy.io import loadmat

    try:
        variables = loadmat(path)
    except OSError:
        raise
    except Exception as error:  # scipy may raise anything on damaged bytes
        raise ValueError(f"{path!r} cannot be read as a MATLAB file ({type(error).__name__}: {error})") from error
    try:
        return extract(variables)
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path!r} is not {kind} ({type(error).__name__}: {error})") from error


def read_label_map(path: str, size: tuple[int, int]) -> np.ndarray:
    """Read a grey or palette image (H, W) of labels.

    Raises:
        ValueError: its size is not that of the photo, or it has several channels.
        OSError: the file cannot be read.
    """
    with open_image(path) as image:
        labels = np.asarray(image)
    if labels.shape != size:
        raise ValueError(f"{path!r} has shape {labels.shape}, its photo {size}")
    return labels


def image_files(folder: str, suffixes: tuple[str, ...] = (".jpg", ".jpeg")) -> list[str]:
    """Sorted names of the images in a folder."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(suffixes))

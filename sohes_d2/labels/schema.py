"""Validation of image and annotation records: ids, names, sizes, numbers and flags.

Common deviations from COCO are normalized: ids and sizes as text or as whole floats, ``iscrowd`` as a boolean or text,
numbers as text, ``coco_url`` (LVIS) instead of ``file_name``, the flag ``ignore`` instead of ``iscrowd``.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Union, cast

import msgspec

from ..errors import InputError, RecordError
from ..structures.masks import MAX_PIXELS

Id = Union[int, str]
T = TypeVar("T")

_Length = Annotated[float, msgspec.Meta(ge=0)]
_Box = tuple[float, float, _Length, _Length]
_LARGEST_ID = 2**63 - 1
_FLAGS = {"none": 0, "": 0, "false": 0, "0": 0, "0.0": 0, "true": 1, "1": 1, "1.0": 1}
_INVALID_IN_PATH = re.compile("[\0\ud800-\udfff]")  # also half of a surrogate pair, such as a truncated "\\ud83d"


class ImageRecord(TypedDict, total=False):
    """An image: ``id`` is always present, others if usable; ``height`` and ``width`` in pixels, both or neither."""

    id: Id
    file_name: str
    coco_url: str
    height: int
    width: int


class Annotation(TypedDict, total=False):
    """A mask: ``id``, ``image_id`` and ``iscrowd`` (0 or 1) are always present, ``parent_id`` (0: none) if in the file.

    Other fields are validated only on use (`read_score`, `read_area`, `read_box`, `masks.rle_from_coco`), so that an
    unused field cannot cause errors.
    """

    id: Id
    image_id: Id
    iscrowd: int
    parent_id: Id
    category_id: Any
    segmentation: Any
    area: Any
    bbox: Any
    score: Any
    depth: Any
    level: Any
    source: Any
    ancestor_scores: Any
    obj_ann_id: Id  # PACO only


_IDS: tuple[Literal["id", "image_id", "obj_ann_id"], ...] = ("id", "image_id", "obj_ann_id")
_COPIED = ("category_id", "segmentation", "area", "bbox", "score", "depth", "level", "source", "ancestor_scores")


class Problems:
    """Unusable records and fields of a label file, by reason.

    Attributes:
        counts: number of problems by reason.
        items: "place: message" of the first `LISTED` problems.
    """

    LISTED = 1000

    def __init__(self, refused: str = "") -> None:
        """
        Args:
            refused: path of the file, to reject it at the first problem; "" to collect problems.
        """
        self.counts: Counter[str] = Counter()
        self.items: list[str] = []
        self._refused = refused

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, place: str, error: RecordError, instead: str = "") -> None:
        """Add a problem.

        Args:
            place: position of the record, for the message; may be empty.
            error: the error.
            instead: how the record is used if it is not skipped.

        Raises:
            InputError: ``refused`` was given.
        """
        message = f"{place}{place and ': '}{error}"
        if self._refused:
            raise InputError(f"{self._refused}: {message}; repair or remove it") from error
        self.counts[error.reason] += 1
        if len(self.items) < self.LISTED:
            # names come from files: remove control characters and line breaks
            message += instead and f"; {instead}"
            self.items.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))

    @contextmanager
    def at(self, place: str, instead: str = "") -> Iterator[None]:
        """Context manager that passes a RecordError raised in its block to `add`."""
        try:
            yield
        except RecordError as error:
            self.add(place, error, instead)

    def summary(self) -> str:
        """Summary in one line: counts by reason and an example; empty if there are none."""
        if not self.counts:
            return ""
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())
        return f"{len(self)} records are invalid ({reasons}), for example {self.items[0]}"


def read_id(value: Any, name: str = "id") -> Id:
    """Validate an id: a whole number, or text that is not a number.

    Raises:
        RecordError: not an id.
    """
    if isinstance(value, str):
        value = value.strip()
        # "7" becomes 7, but "007" and numbers beyond 64 bits remain text
        if value.isascii() and value.isdigit() and len(value) < 19 and value == str(int(value)):
            return int(value)
        if value:
            return value
    elif isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST_ID:
        return value
    raise RecordError(f"`{name}` must be a whole number or text, got {value!r:.40}", f"wrong {name}")


def read_number(value: Any, name: str, kind: Any = float) -> float:
    """Validate a finite number with ``kind``, a number type of msgspec; numeric text is accepted.

    Raises:
        RecordError: not a finite number.
    """
    try:
        number = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        number = math.nan
    if not math.isfinite(number):
        sign = "" if kind is float else ", not negative"
        raise RecordError(f"the {name} must be a finite number{sign}, got {value!r:.40}", f"wrong {name}")
    return number


def read_score(annotation: Annotation) -> float:
    """The score; 1 if the annotation has none.

    Raises:
        RecordError: not a finite number.
    """
    return read_number(annotation["score"], "score") if "score" in annotation else 1.0


def read_area(annotation: Annotation) -> float | None:
    """The area in pixels; None if it has to be computed from the mask.

    Raises:
        RecordError: not a finite number, or negative.
    """
    area = annotation.get("area")
    return None if area is None else read_number(area, "area", _Length)


def read_box(annotation: Annotation) -> list[float] | None:
    """The box (x, y, width, height) in pixels; None if it has to be computed from the mask.

    Raises:
        RecordError: not four finite numbers, or a negative size.
    """
    box = annotation.get("bbox")
    if box is None or box == []:
        return None
    try:
        values = list(msgspec.convert(box, _Box, strict=False))
    except msgspec.ValidationError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise RecordError(f"the bbox must be x, y, width, height, got {str(box):.60}", "wrong bbox")
    return values


def or_none(read: Callable[..., T], *arguments: Any) -> T | None:
    """Return ``read(*arguments)``, or None if it raises RecordError."""
    with suppress(RecordError):
        return read(*arguments)
    return None


def read_category(annotation: Annotation) -> int:
    """The class as a number, 1 if the annotation has none; classes are only used to break ties."""
    try:
        return msgspec.convert(annotation.get("category_id"), int, strict=False)
    except msgspec.ValidationError:
        return 1


def read_image(record: Any, problems: Problems, place: str) -> ImageRecord:
    """Validate an image record.

    Args:
        record: the json value.
        problems: collects unusable names, which are removed from the record, as are unusable sizes.
        place: file and position, for messages.

    Raises:
        InputError: not an object, or without a usable id.
    """
    if not isinstance(record, dict):
        raise InputError(f"{place}: an image must be an object, got {record!r:.40}")
    name: Any = record.get("file_name")
    url: Any = record.get("coco_url")
    try:
        image = ImageRecord(id=read_id(record.get("id")))
    except RecordError as error:
        raise InputError(f"{place}: image {name!r:.80} has no valid 'id': {error}") from error
    place = f"{place}: image {image['id']!r:.40}"
    if _is_path(url):
        image["coco_url"] = url
        name = url.rstrip("/").rsplit("/", 1)[-1] if name is None else name
    if _is_path(name):
        image["file_name"] = name
    elif name is not None:
        problems.add(place, RecordError(f"`file_name` is {name!r:.40}, which is not a path", "wrong file_name"))
    size = read_size(record)
    if size is not None:
        image["height"], image["width"] = size
    return image


def _is_path(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and not _INVALID_IN_PATH.search(name)


def read_size(record: dict[str, Any]) -> tuple[int, int] | None:
    """(H, W) of an image record; None if ``height`` or ``width`` is unusable, or their product exceeds `MAX_PIXELS`."""
    try:
        height, width = (msgspec.convert(record.get(key), int, strict=False) for key in ("height", "width"))
    except msgspec.ValidationError:
        return None
    return (height, width) if height > 0 and width > 0 and height * width <= MAX_PIXELS else None


def image_name(image: ImageRecord, path: str = "") -> str:
    """The `file_name` of an image.

    Raises:
        InputError: the record has none.
    """
    if "file_name" not in image:
        raise InputError(f"{path}{path and ': '}image {image['id']!r} has no usable file_name; write its path")
    return image["file_name"]


def image_size(image: ImageRecord, path: str) -> tuple[int, int]:
    """(H, W) of an image.

    Raises:
        InputError: the record has none.
    """
    if "height" not in image:
        name = image.get("file_name", image["id"])
        raise InputError(f"{path}: image {name!r} has no usable 'height' and 'width'; write its size in pixels")
    return image["height"], image["width"]


def read_annotation(record: Any, needs_image: bool = True) -> Annotation:
    """Validate an annotation, except its mask, box, area and score.

    Args:
        record: the json value.
        needs_image: whether ``image_id`` is required; False for files of a single image.

    Returns:
        The annotation, with ``id`` only if the file has one.

    Raises:
        RecordError: not an object, or an invalid id or flag.
    """
    if not isinstance(record, dict):
        raise RecordError(f"an annotation must be an object, got {record!r:.40}", "no annotation")
    annotation = cast(Annotation, {key: record[key] for key in _COPIED if key in record})
    for key in _IDS:
        if record.get(key) is not None:
            annotation[key] = read_id(record[key], key)
    if needs_image and "image_id" not in annotation:
        raise RecordError("it has no image_id", "no image_id")
    annotation["iscrowd"] = max(_flag(record, "iscrowd"), _flag(record, "ignore"))
    if "parent_id" in record:
        parent = record["parent_id"]
        annotation["parent_id"] = 0 if parent is None or parent == "" else read_id(parent, "parent_id")
    return annotation


def annotation_place(record: Any, index: int, where: str = "") -> str:
    """Name of an annotation for messages: its id, else its 1-based position; after ``where``, if given."""
    key = record.get("id") if isinstance(record, dict) else None
    is_id = isinstance(key, int) or (isinstance(key, str) and key)
    return f"{where}{where and ', '}annotation " + (f"{key!r:.40}" if is_id else f"number {index + 1}")


def read_annotations(records: Sequence[Any], problems: Problems, where: str) -> list[Annotation]:
    """The usable annotations of one image, with unique ids.

    Args:
        records: the json values; ``image_id`` is optional.
        problems: collects skipped records.
        where: file or image, for messages.

    Raises:
        InputError: ambiguous ids, see `check_ids`.
    """
    annotations: list[Annotation] = []
    for k, record in enumerate(records):
        with problems.at(annotation_place(record, k, where)):
            annotations.append(read_annotation(record, needs_image=False))
    check_ids(annotations, where)
    return annotations


def _flag(record: dict[str, Any], name: str) -> int:
    value = record.get(name)
    flag = _FLAGS.get(str(value).strip().lower())
    if flag is None:
        raise RecordError(f"`{name}` must be 0 or 1, got {value!r:.40}", f"wrong {name}")
    return flag


def check_ids(annotations: Sequence[Annotation], where: str) -> None:
    """Make the ids of the annotations of one image unique, in place.

    An annotation without id, or with the id of an earlier one, gets a new id, since only ``parent_id`` refers to ids.

    Args:
        annotations: annotations of one image; modified.
        where: file and image, for messages.

    Raises:
        InputError: a repeated id is used as parent_id.
    """
    counts = Counter(annotation.get("id") for annotation in annotations)
    without_id = counts.pop(None, 0)
    if not without_id and len(counts) == len(annotations):
        return
    parents = {annotation.get("parent_id") for annotation in annotations}
    repeated = next((key for key, count in counts.items() if count > 1 and key in parents), None)
    if repeated is not None:
        raise InputError(f"{where}: two annotations have the id {repeated!r}, which is a parent_id; make ids unique")
    next_id = max((key for key in [*counts, *parents] if isinstance(key, int)), default=0) + 1
    used: set[Any] = {None}
    for annotation in annotations:
        if annotation.get("id") in used:
            annotation["id"] = new_id = max(next_id, 1)
            next_id = new_id + 1
        used.add(annotation["id"])

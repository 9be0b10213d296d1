"""What a label file may say of an image and of a mask: one rule for ids, names, sizes, numbers and flags.

Forms that are common in the wild come out as COCO has them: ids and sizes as text or as floats that are whole,
``iscrowd`` as a truth value or text, numbers as text, ``coco_url`` (LVIS) in the place of ``file_name``, the flag
``ignore`` in the place of ``iscrowd``.
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
_NO_NAME = re.compile("[\0\ud800-\udfff]")  # also half of a character, as a cut "\\ud83d"


class ImageRecord(TypedDict, total=False):
    """An image: ``id`` always, the others where they are usable; ``height`` and ``width``, both or none, in pixels."""

    id: Id
    file_name: str
    coco_url: str
    height: int
    width: int


class Annotation(TypedDict, total=False):
    """A mask: ``id``, ``image_id`` and ``iscrowd`` (0 or 1) always, ``parent_id`` (0 for none) where the file has it.

    The other fields are as the file has them; `read_score`, `read_area`, `read_box` and `masks.rle_from_coco` check and
    normalize them where they are needed, so that an unused field does no harm.
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
    obj_ann_id: Id  # of PACO


_IDS: tuple[Literal["id", "image_id", "obj_ann_id"], ...] = ("id", "image_id", "obj_ann_id")
_COPIED = ("category_id", "segmentation", "area", "bbox", "score", "depth", "level", "source", "ancestor_scores")


class Problems:
    """What of a label file is left out, by reason.

    Attributes:
        counts: reason -> how often.
        items: "place: message" of the first `LISTED`.
    """

    LISTED = 1000

    def __init__(self, refused: str = "") -> None:
        """
        Args:
            refused: the path of a file of which nothing may be left out, since numbers would change.
        """
        self.counts: Counter[str] = Counter()
        self.items: list[str] = []
        self._refused = refused

    def __len__(self) -> int:
        return sum(self.counts.values())

    def add(self, place: str, error: RecordError, instead: str = "") -> None:
        """Note that what is at a place cannot be used.

        Args:
            place: for the message; may be empty.
            error: what is wrong.
            instead: what is done about it, if it is not left out.

        Raises:
            InputError: the file is one of which nothing may be left out.
        """
        message = f"{place}{place and ': '}{error}"
        if self._refused:
            raise InputError(f"{self._refused}: {message}; repair it or take it out") from error
        self.counts[error.reason] += 1
        if len(self.items) < self.LISTED:
            # names come from files: nothing that a terminal would obey, nor another line
            message += instead and f"; {instead}"
            self.items.append("".join(c if c.isprintable() else repr(c)[1:-1] for c in message))

    @contextmanager
    def at(self, place: str, instead: str = "") -> Iterator[None]:
        """`add` the RecordError that ends the block, if one does."""
        try:
            yield
        except RecordError as error:
            self.add(place, error, instead)

    def summary(self) -> str:
        """One line: how many, by reason, and an example; empty if there are none."""
        if not self.counts:
            return ""
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())
        return f"{len(self)} records cannot be used as they are ({reasons}), for example {self.items[0]}"


def read_id(value: Any, name: str = "id") -> Id:
    """An id: a whole number, or text that is none.

    Raises:
        RecordError: something else.
    """
    if isinstance(value, str):
        value = value.strip()
        # "7" is 7, but "007" and what no 64 bits hold stay names
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
    """A finite number of a type of msgspec; text is taken where it is one.

    Raises:
        RecordError: something else.
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
    """The score; 1 for an annotation without.

    Raises:
        RecordError: no finite number.
    """
    return read_number(annotation["score"], "score") if "score" in annotation else 1.0


def read_area(annotation: Annotation) -> float | None:
    """The area in pixels, or None if the mask must tell it.

    Raises:
        RecordError: no finite number, or negative.
    """
    area = annotation.get("area")
    return None if area is None else read_number(area, "area", _Length)


def read_box(annotation: Annotation) -> list[float] | None:
    """The box (x, y, width, height) in pixels, or None if the mask must tell it.

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
    """What ``read(*arguments)`` returns, or None where it raises RecordError."""
    with suppress(RecordError):
        return read(*arguments)
    return None


def read_category(annotation: Annotation) -> int:
    """The class as a number, 1 for an annotation without: classes only ever break ties."""
    try:
        return msgspec.convert(annotation.get("category_id"), int, strict=False)
    except msgspec.ValidationError:
        return 1


def read_image(record: Any, problems: Problems, place: str) -> ImageRecord:
    """An image record.

    Args:
        record: the json value.
        problems: collects unusable names; they are left out of the record, as is the size.
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
        raise InputError(f"{place}: image {name!r:.80} has no 'id' of its own: {error}") from error
    place = f"{place}: image {image['id']!r:.40}"
    if _is_path(url):
        image["coco_url"] = url
        name = url.rstrip("/").rsplit("/", 1)[-1] if name is None else name
    if _is_path(name):
        image["file_name"] = name
    elif name is not None:
        problems.add(place, RecordError(f"`file_name` is {name!r:.40}, which is no path", "wrong file_name"))
    size = _size(record)
    if size is not None:
        image["height"], image["width"] = size
    return image


def _is_path(name: Any) -> bool:
    return isinstance(name, str) and bool(name.strip()) and not _NO_NAME.search(name)


def _size(record: dict[str, Any]) -> tuple[int, int] | None:
    try:
        height, width = (msgspec.convert(record.get(key), int, strict=False) for key in ("height", "width"))
    except msgspec.ValidationError:
        return None
    return (height, width) if height > 0 and width > 0 and height * width <= MAX_PIXELS else None


def image_name(image: ImageRecord, path: str = "") -> str:
    """The `file_name` of an image whose record must tell it.

    Raises:
        InputError: it does not.
    """
    if "file_name" not in image:
        raise InputError(f"{path}{path and ': '}image {image['id']!r} has no usable file_name; write its path")
    return image["file_name"]


def image_size(image: ImageRecord, path: str) -> tuple[int, int]:
    """(H, W) of an image whose record must tell it.

    Raises:
        InputError: it does not.
    """
    if "height" not in image:
        name = image.get("file_name", image["id"])
        raise InputError(f"{path}: image {name!r} has no usable 'height' and 'width'; write its size in pixels")
    return image["height"], image["width"]


def read_annotation(record: Any, needs_image: bool = True) -> Annotation:
    """An annotation, without a look at its mask, box, area and score.

    Args:
        record: the json value.
        needs_image: whether ``image_id`` must be there; not in files that are about one image.

    Returns:
        With ``id`` only where the file has one.

    Raises:
        RecordError: not an object, or an id or a flag that is none.
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
    """What to call an annotation in a message: by its id, else by its position from 1; after its image, if named."""
    key = record.get("id") if isinstance(record, dict) else None
    is_id = isinstance(key, int) or (isinstance(key, str) and key)
    return f"{where}{where and ', '}annotation " + (f"{key!r:.40}" if is_id else f"number {index + 1}")


def read_annotations(records: Sequence[Any], problems: Problems, where: str) -> list[Annotation]:
    """The usable ones among the annotations of one image, with ids that differ.

    Args:
        records: the json values; they need no ``image_id``.
        problems: collects what is left out.
        where: file or image, for messages.

    Raises:
        InputError: ids that are ambiguous, see `check_ids`.
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
    """Give every annotation of one image a unique id, where that changes no parent.

    Annotations without an id, and those whose id another one has, get new ones: ids matter to ``parent_id`` alone.

    Args:
        annotations: of one image; changed.
        where: file and image, for messages.

    Raises:
        InputError: an id that two annotations have is somebody's parent.
    """
    times = Counter(annotation.get("id") for annotation in annotations)
    unnamed = times.pop(None, 0)
    if not unnamed and len(times) == len(annotations):
        return
    parents = {annotation.get("parent_id") for annotation in annotations}
    repeated = next((key for key, count in times.items() if count > 1 and key in parents), None)
    if repeated is not None:
        raise InputError(
            f"{where}: two annotations have the id {repeated!r}, which is a parent_id; give each an id of its own"
        )
    following = max((key for key in [*times, *parents] if isinstance(key, int)), default=0) + 1
    used: set[Any] = {None}
    for annotation in annotations:
        if annotation.get("id") in used:
            annotation["id"] = new = max(following, 1)
            following = new + 1
        used.add(annotation["id"])

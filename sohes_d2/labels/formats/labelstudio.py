"""Label Studio: a json of tasks with brush labels, as predictions.

Kept: exact masks as Label Studio's run lengths; scores; parents as relations "part of" from a mask to its parent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...structures.files import write_json
from ...structures.forest import Forest
from ...structures.masks import encode_masks
from ..writer import read_json
from .base import LABEL, Entity, Options, Photo, build_photo, get, invalid, mask_facts, number, photo_size
from .shapes import crops

IS_FOLDER = False
LOSSES = "nothing is lost"
RELATION = "part of"
FROM_NAME, TO_NAME = "brush", "image"  # names in the labelling interface, see INTERFACE
INTERFACE = f"""<View>
  <Image name="{TO_NAME}" value="$image"/>
  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}"><Label value="{LABEL}"/></BrushLabels>
  <Relations><Relation value="{RELATION}"/></Relations>
</View>
"""
# The run lengths are a bit stream. Header: number of values (32 bits), bits per value less one (5), and bits of four
# kinds of counts, each less one (4 x 4). Record: 1 bit (1: one value repeated, 0: a list of values), 2 bits for the
# kind of count, the count less one, and the value or values.
_VALUE_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
_LARGEST_COUNT = 1 << _COUNT_BITS[-1]
_HEAD_BITS = (32, 5, 4, 4, 4, 4)
_CHANNELS = 4  # channels of the packed RGBA picture; a mask is written to all of them


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write the tasks, for "Import" of a project with the labelling interface INTERFACE."""
    tasks = []
    for k, photo in enumerate(photos, 1):
        tasks.append(
            {
                "id": k,
                "data": {"image": options.image_prefix + photo.file_name, "file_name": photo.file_name},
                "predictions": [{"model_version": "sohes_d2", "result": _results(photo.forest)}],
            }
        )
    write_json(output, tasks, indent=None)


def _results(forest: Forest) -> list[dict[str, Any]]:
    """The region of each mask, and its relation to its parent."""
    height, width = forest.image_size
    regions, relations = [], []
    for (box, inside), (key, parent, score) in zip(crops(forest.masks), mask_facts(forest)):
        regions.append(
            {
                "id": f"entity{key}",
                "type": "brushlabels",
                "from_name": FROM_NAME,
                "to_name": TO_NAME,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": score,
                "value": {"format": "rle", "rle": pack(inside, box, forest.image_size), "brushlabels": [LABEL]},
            }
        )
        if parent:
            ends = {"from_id": f"entity{key}", "to_id": f"entity{parent}"}
            relations.append({"type": "relation", **ends, "direction": "right", "labels": [RELATION]})
    return [*regions, *relations]


def read(source: Path, options: Options) -> list[Photo]:
    """Read a json of tasks of Label Studio or of `write`: the first annotation of each task, else its first prediction.

    Raises:
        InputError: not a list of tasks, or an invalid region.
    """
    tasks = read_json(source)
    if not isinstance(tasks, list):
        raise InputError(f"{str(source)!r} is not a list of tasks; export the project as JSON")
    photos = []
    for k, task in enumerate(tasks):
        where = f"{str(source)!r}, task {k}"
        with invalid(where):
            photos += _read_task(task, where, options.image_prefix)
    return photos


def _read_task(task: Any, where: str, image_prefix: str) -> list[Photo]:
    """The photo of a task; none without brush labels."""
    data = get(task, "data", dict, where)
    made = [*(task.get("annotations") or []), *(task.get("predictions") or [])]
    results = [r for r in (get(made[0], "result", list, where) if made else ()) if isinstance(r, Mapping)]
    regions = [r for r in results if r.get("type") == "brushlabels"]
    if not regions:
        return []
    parents = {r.get("from_id"): r.get("to_id") for r in results if r.get("type") == "relation"}
    size = photo_size(regions[0].get("original_height"), regions[0].get("original_width"), where)
    entities = [_read_region(region, size, parents, where) for region in regions]
    name = data.get("file_name") or get(data, "image", str, where).removeprefix(image_prefix)
    return [build_photo(str(name), size, entities)]


def _read_region(region: Mapping[str, Any], size: tuple[int, int], parents: Mapping[Any, Any], where: str) -> Entity:
    value = get(region, "value", dict, where)
    labels = value.get("brushlabels") or [LABEL]
    with invalid(f"{where}: region {region.get('id')!r}"):
        pixels = unpack(get(value, "rle", list, where), size[0] * size[1] * _CHANNELS)
    mask = pixels.reshape(*size, _CHANNELS)[..., -1] > 0
    score = number(region.get("score"))
    return Entity(encode_masks([mask])[0], region.get("id"), parents.get(region.get("id")), score, str(labels[0]))


def pack(inside: np.ndarray, box: Sequence[int], size: tuple[int, int]) -> list[int]:
    """Encode a mask as Label Studio's run lengths: a list of byte values.

    Args:
        inside: (h, w) bool, the mask inside its box.
        box: (x, y, w, h).
        size: (H, W) of the photo.
    """
    height, width = size
    left, top, w, _ = box
    inside = np.pad(inside, ((0, 0), (1, 1)))  # an empty column on each side
    rows, columns = np.nonzero(inside[:, 1:] != inside[:, :-1])
    bounds = (rows + top) * width + columns + left  # alternating starts and ends of row-major runs
    if w == width:  # a row may end where the next begins
        touching = np.flatnonzero(bounds[1:-1:2] == bounds[2::2]) * 2 + 1
        bounds = np.delete(bounds, [*touching, *(touching + 1)])
    bounds = np.concatenate([[0], bounds, [height * width]])
    lengths = np.diff(bounds) * _CHANNELS
    begun = lengths > 0  # the first and the last run may be empty
    values, lengths = np.where(np.arange(len(lengths)) % 2, 255, 0)[begun], lengths[begun]
    # split runs longer than the largest count
    pieces = -(-lengths // _LARGEST_COUNT)
    values = np.repeat(values, pieces)
    counts = np.full(len(values), _LARGEST_COUNT)
    counts[pieces.cumsum() - 1] = lengths - (pieces - 1) * _LARGEST_COUNT
    kinds = np.searchsorted(1 << np.array(_COUNT_BITS), counts)
    widths = np.array(_COUNT_BITS)[kinds]
    records = (((4 + kinds) << widths | counts - 1) << _VALUE_BITS) | values
    head = [height * width * _CHANNELS, _VALUE_BITS - 1, *(size - 1 for size in _COUNT_BITS)]
    return _joined_bits(
        np.concatenate([head, records]), np.concatenate([_HEAD_BITS, 3 + widths + _VALUE_BITS])
    ).tolist()


def _joined_bits(values: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Concatenate numbers of given bit widths to uint8; the last byte is padded with zeros."""
    last = widths.cumsum() - 1  # position of the lowest bit of each
    shifts = np.repeat(last, widths) - np.arange(last[-1] + 1)
    return np.packbits((np.repeat(values, widths) >> shifts & 1).astype(np.uint8))


def unpack(packed: Sequence[int], expected: int) -> np.ndarray:
    """Decode Label Studio's run lengths.

    Args:
        packed: list of byte values.
        expected: expected number of values.

    Raises:
        ValueError: another number of values, or bytes that end too early.
    """
    data = np.asarray(packed, np.int64).astype(np.uint8).tobytes()
    position = 0

    def take(*widths: int) -> list[int]:
        """Read the next numbers of the given bit widths, at most 57 bits in total."""
        nonlocal position
        start, total = position, sum(widths)
        position += total
        if position > 8 * len(data):
            raise ValueError("the run lengths end too early")
        window = int.from_bytes(data[start >> 3 : (start >> 3) + 8].ljust(8, b"\0"), "big") << (start & 7)
        found, left = [], 64
        for width in widths:
            left -= width
            found.append(window >> left & (1 << width) - 1)
        return found

    [count] = take(32)
    if count != expected:
        raise ValueError(f"{count} values, not {expected} for four channels of the photo")
    value_bits, *count_bits = (size + 1 for size in take(*_HEAD_BITS[1:]))
    values: list[int] = []
    lengths: list[int] = []
    done = 0
    while done < count:
        repeated, kind = take(1, 2)
        if repeated:
            length, value = take(count_bits[kind], value_bits)
            values.append(value)
            lengths.append(length + 1)
            done += length + 1
        else:
            length = min(take(count_bits[kind])[0] + 1, count - done)
            values += [take(value_bits)[0] for _ in range(length)]
            lengths += [1] * length
            done += length
    return np.repeat(np.array(values, np.uint8 if value_bits <= 8 else np.int64), lengths)[:count]

"""Label Studio: a json of tasks with brush labels, as predictions.

Kept: masks, exact, as Label Studio's run lengths; scores; parents as relations "part of" from a part to its whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...structures.files import write_json
from ...structures.masks import decode_mask, encode_masks
from ..writer import read_json
from .base import DIGITS, LABEL, Entity, Options, Photo, build_photo, get, number, parent_keys

IS_FOLDER = False
LOSSES = "nothing is lost"
RELATION = "part of"
FROM_NAME, TO_NAME = "brush", "image"  # of the labelling interface, see INTERFACE
INTERFACE = f"""<View>
  <Image name="{TO_NAME}" value="$image"/>
  <BrushLabels name="{FROM_NAME}" toName="{TO_NAME}"><Label value="{LABEL}"/></BrushLabels>
  <Relations><Relation value="{RELATION}"/></Relations>
</View>
"""
# The format packs runs of equal values into bits: a head of 32 bits for the number of values, 5 for the bits of a value
# and 4 times 4 for the bits of four kinds of counts, each less one; then records of 1 bit (1: one value many times, 0:
# many values), 2 bits for the kind of count, the count less one, and the value or values.
_VALUE_BITS = 8
_COUNT_BITS = (3, 4, 8, 16)
_CHANNELS = 4  # of the RGBA picture that is packed; a mask sets all


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write the tasks, for "Import" of a project with the labelling interface INTERFACE."""
    tasks = []
    for k, photo in enumerate(photos, 1):
        results = [*_regions(photo), *_relations(photo)]
        tasks.append(
            {
                "id": k,
                "data": {"image": options.image_prefix + photo.file_name, "file_name": photo.file_name},
                "predictions": [{"model_version": "sohes_d2", "result": results}],
            }
        )
    write_json(output, tasks)


def _regions(photo: Photo) -> Iterator[dict[str, Any]]:
    height, width = photo.forest.image_size
    for k, mask in enumerate(photo.forest.masks):
        yield {
            "id": f"entity{k + 1}",
            "type": "brushlabels",
            "from_name": FROM_NAME,
            "to_name": TO_NAME,
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(photo.forest.scores[k]), DIGITS),
            "value": {"format": "rle", "rle": pack(decode_mask(mask)), "brushlabels": [LABEL]},
        }


def _relations(photo: Photo) -> Iterator[dict[str, Any]]:
    for k, parent in enumerate(parent_keys(photo.forest), 1):
        if parent:
            ends = {"from_id": f"entity{k}", "to_id": f"entity{parent}"}
            yield {"type": "relation", **ends, "direction": "right", "labels": [RELATION]}


def read(source: Path, options: Options) -> list[Photo]:
    """Read a json of tasks, exported or written here: of each, the first annotation, else the first prediction.

    Raises:
        InputError: it is no such file, or a region cannot be used.
    """
    tasks = read_json(source)
    if not isinstance(tasks, list):
        raise InputError(f"{str(source)!r} holds no list of tasks; export the project as JSON")
    photos = []
    for k, task in enumerate(tasks):
        where = f"{str(source)!r}, task {k}"
        data = get(task, "data", dict, where)
        made = [*(task.get("annotations") or []), *(task.get("predictions") or [])]
        results = get(made[0], "result", list, where) if made else []
        regions = [r for r in results if isinstance(r, Mapping) and r.get("type") == "brushlabels"]
        if not regions:
            continue
        parents = {r.get("from_id"): r.get("to_id") for r in results if r.get("type") == "relation"}
        size = get(regions[0], "original_height", int, where), get(regions[0], "original_width", int, where)
        entities = [_read_region(region, size, parents, where) for region in regions]
        name = data.get("file_name") or get(data, "image", str, where).removeprefix(options.image_prefix)
        photos.append(build_photo(str(name), size, entities))
    return photos


def _read_region(region: Mapping[str, Any], size: tuple[int, int], parents: Mapping[Any, Any], where: str) -> Entity:
    value = get(region, "value", dict, where)
    labels = value.get("brushlabels") or [LABEL]
    try:
        pixels = unpack(get(value, "rle", list, where), size[0] * size[1] * _CHANNELS)
    except (ValueError, IndexError, OverflowError) as error:
        raise InputError(f"{where}: region {region.get('id')!r}: {error}") from error
    mask = pixels.reshape(*size, _CHANNELS)[..., -1] > 0
    score = number(region.get("score"))
    return Entity(encode_masks([mask])[0], region.get("id"), parents.get(region.get("id")), score, str(labels[0]))


def pack(mask: np.ndarray) -> list[int]:
    """Label Studio's run lengths of a mask, (H, W) bool: bytes as numbers."""
    flat = mask.ravel()
    bounds = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{flat.size * _CHANNELS:032b}{_VALUE_BITS - 1:05b}", *(f"{size - 1:04b}" for size in _COUNT_BITS)]
    for start, length in zip(bounds[:-1], np.diff(bounds) * _CHANNELS):
        value = 255 if flat[start] else 0
        while length > 0:
            kind = next((k for k, size in enumerate(_COUNT_BITS) if length <= 1 << size), len(_COUNT_BITS) - 1)
            count = min(int(length), 1 << _COUNT_BITS[kind])
            bits.append(f"1{kind:02b}{count - 1:0{_COUNT_BITS[kind]}b}{value:0{_VALUE_BITS}b}")
            length -= count
    text = "".join(bits)
    return [int(text[k : k + 8].ljust(8, "0"), 2) for k in range(0, len(text), 8)]


def unpack(packed: Sequence[int], expected: int) -> np.ndarray:
    """The values that were packed.

    Args:
        packed: bytes as numbers.
        expected: how many values there must be.

    Raises:
        ValueError: another number of values, or bytes that end too early.
    """
    data = np.unpackbits(np.asarray(packed, np.int64).astype(np.uint8)).astype(np.uint8)
    position = 0

    def take(bits: int) -> int:
        nonlocal position
        if position + bits > len(data):
            raise ValueError("the run lengths end too early")
        piece = data[position : position + bits]
        position += bits
        return int("".join(map(str, piece)), 2)

    count = take(32)
    if count != expected:
        raise ValueError(f"{count} values, not {expected} for four channels of the photo")
    value_bits = take(5) + 1
    count_bits = [take(4) + 1 for _ in range(4)]
    values = np.zeros(count, np.int64)
    done = 0
    while done < count:
        repeated = take(1)
        length = take(count_bits[take(2)]) + 1
        if repeated:
            values[done : done + length] = take(value_bits)
        else:
            for k in range(done, min(done + length, count)):
                values[k] = take(value_bits)
        done += length
    return values

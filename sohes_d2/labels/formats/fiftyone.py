"""FiftyOne: sample documents, as in `samples.json` of FiftyOne's exports.

    import fiftyone as fo
    from bson import json_util
    dataset = fo.Dataset("entities")
    dataset.add_samples([fo.Sample.from_dict(d) for d in json_util.loads(open("samples.json").read())["samples"]])

Kept: exact masks, cropped to their boxes; scores as confidence; ids as index; parents and depths as attributes.
"""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...structures.files import write_json
from ...structures.forest import Forest
from ...structures.masks import encode_window
from ..writer import read_json
from .base import LABEL, Entity, Options, Photo, build_photo, get, invalid, mask_facts, number, photo_size
from .shapes import crops

IS_FOLDER = False
LOSSES = "nothing is lost"
FIELD = "entities"
_MAX_BYTES = 1 << 30  # largest size of an unpacked mask


def write(photos: Sequence[Photo], output: Path, options: Options) -> None:
    """Write the samples; their paths are absolute if the folder of photos is known."""
    samples = []
    for photo in photos:
        height, width = photo.forest.image_size
        path = (options.images / photo.file_name).absolute() if options.images else Path(photo.file_name)
        samples.append(
            {
                "filepath": path.as_posix(),
                "tags": [],
                "metadata": {"_cls": "ImageMetadata", "width": width, "height": height},
                "file_name": photo.file_name,
                FIELD: {"_cls": "Detections", "detections": _detections(photo.forest)},
            }
        )
    write_json(output, {"samples": samples})


def _detections(forest: Forest) -> list[dict[str, Any]]:
    height, width = forest.image_size
    masks = zip(crops(forest.masks), mask_facts(forest), forest.depths().tolist())
    return [
        {
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": LABEL,
            "bounding_box": [left / width, top / height, w / width, h / height],
            "mask": {"$binary": {"base64": _pack(inside), "subType": "00"}},
            "confidence": score,
            "index": key,
            "parent": parent,
            "depth": depth,
        }
        for ((left, top, w, h), inside), (key, parent, score), depth in masks
    ]


def read(source: Path, options: Options) -> list[Photo]:
    """Read a samples.json of `write` or of FiftyOne's export as "FiftyOneDataset": the field "entities", or else the
    first field of detections with masks.

    Raises:
        InputError: not a samples.json, an invalid mask, or a sample without size.
    """
    source = source / "samples.json" if source.is_dir() else source
    content = read_json(source)
    photos = []
    for k, sample in enumerate(get(content, "samples", list, repr(str(source)))):
        where = f"{str(source)!r}, sample {k}"
        path = get(sample, "filepath", str, where)
        metadata = get(sample, "metadata", dict, where)
        size = photo_size(metadata.get("height"), metadata.get("width"), where)
        with invalid(where):
            entities = [_read(detection, size) for detection in _field(sample) if detection.get("mask")]
        photos.append(build_photo(str(sample.get("file_name") or Path(path).name), size, entities))
    return photos


def _field(sample: Mapping[str, Any]) -> list[Any]:
    for field in (sample.get(FIELD), *sample.values()):
        if isinstance(field, dict) and field.get("_cls") == "Detections":
            detections = field.get("detections") or []
            if any(isinstance(d, dict) and d.get("mask") for d in detections):
                return detections
    return []


def _read(detection: Mapping[str, Any], size: tuple[int, int]) -> Entity:
    inside = _unpack(detection["mask"]["$binary"]["base64"])
    x, y, w, h = (float(value) for value in detection["bounding_box"])
    left, top = round(x * size[1]), round(y * size[0])
    shape = max(1, round(h * size[0])), max(1, round(w * size[1]))
    if left < 0 or top < 0 or left + shape[1] > size[1] or top + shape[0] > size[0]:
        raise ValueError("the box of a mask extends beyond the photo")
    if inside.shape != shape:  # FiftyOne stretches a mask to its box
        rows = (np.arange(shape[0]) + 0.5) * inside.shape[0] / shape[0]
        columns = (np.arange(shape[1]) + 0.5) * inside.shape[1] / shape[1]
        inside = inside[np.ix_(rows.astype(int), columns.astype(int))]
    mask, score = encode_window(inside, (top, left), size), number(detection.get("confidence"))
    return Entity(mask, detection.get("index"), detection.get("parent"), score, detection.get("label", LABEL))


def _pack(mask: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(mask), allow_pickle=False)
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode("ascii")


def _unpack(text: str) -> np.ndarray:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(base64.b64decode(text), _MAX_BYTES)
    mask = np.load(io.BytesIO(data), allow_pickle=False)
    if mask.ndim != 2 or not mask.size:
        raise ValueError(f"a mask of shape {mask.shape}")
    return mask != 0

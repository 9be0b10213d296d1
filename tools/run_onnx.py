#!/usr/bin/env python
"""Find the entities of photos with a model exported by tools/export_onnx.py, without torch and Detectron2.

    pip install numpy pillow onnxruntime
    PYTHONPATH=. python tools/run_onnx.py --model model.onnx --input a.jpg b.jpg --output output/onnx

A photo is resized to fit into the model's fixed input and padded with the mean colour. A mask's score is the
probability that its query is an entity, times the mean probability of its pixels, calibrated. Parents are decoded as in
`SOHESPredictor`, by `sohes_d2.structures.hierarchy`, which needs only numpy.

OUTPUT receives labels.json, COCO json with uncompressed RLE, "parent_id" (0: a whole) and "depth"; and for each photo
NAME.png, with parts in shades of their whole's colour.

Not supported: batches, crops of large photos, GPUs. For photos with the aspect ratio of the model's input, results are
those of `SOHESPredictor` at that size; others have more padding here.
"""

from __future__ import annotations

import argparse
import colorsys
import json
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sohes_d2.cli.runner import EXIT_DONE, EXIT_SKIPPED, make_main, tool_parser
from sohes_d2.errors import ImageReadError, WeightsError
from sohes_d2.structures.files import check_output, write_json, write_picture
from sohes_d2.structures.hierarchy import NO_PARENT, depths_of, parents_by_coverage, parents_by_probability
from sohes_d2.structures.images import read_image
from sohes_d2.structures.score_calibration import calibrated

ALPHA = 0.5  # opacity of a mask over the photo


class Entity(NamedTuple):
    """A mask, cropped to its box."""

    inside: np.ndarray  # (h, w) bool
    top: int
    left: int
    area: int  # pixels
    score: float
    query: int


def fit(photo: Image.Image, size: tuple[int, int], colour: list[float]) -> tuple[np.ndarray, tuple[int, int]]:
    """The model's input, (1, 3, H, W) float32, for an RGB photo, and the size (h, w) of the photo in it."""
    scale = min(size[0] / photo.height, size[1] / photo.width)
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in (photo.height, photo.width))
    image = np.empty((*size, 3), np.float32)
    image[:] = colour
    image[:height, :width] = photo.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(image.transpose(2, 0, 1))[None], (height, width)


def resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (h, w) to ``size``, bilinear, with pixel centres at halves and replicated borders."""
    for axis, cells in enumerate(size):
        if values.shape[axis] == cells:
            continue
        position = (np.arange(cells) + 0.5) * (values.shape[axis] / cells) - 0.5
        position = position.clip(0, values.shape[axis] - 1).astype(np.float32)
        before = position.astype(int)
        share = (position - before)[:, None] if axis == 0 else position - before
        after = np.minimum(before + 1, values.shape[axis] - 1)
        values = values.take(before, axis) * (1 - share) + values.take(after, axis) * share
    return values


def find_entities(
    logits: np.ndarray,
    masks: np.ndarray,
    fitted: tuple[int, int],
    photo_size: tuple[int, int],
    settings: dict[str, Any],
) -> list[Entity]:
    """The entities of a photo by descending score.

    Args:
        logits: (Q, K + 1).
        masks: (Q, H/4, W/4) logits.
        fitted: (h, w) of the photo in the model's input.
        photo_size: (H, W) of the photo.
        settings: metadata of the model.
    """
    shares = np.exp(logits - logits.max(1, keepdims=True))
    probability = 1 - shares[:, -1] / shares.sum(1)
    probability[masks.max(axis=(1, 2)) <= 0] = 0  # empty masks
    likeliest = np.argsort(-probability, kind="stable")[: settings["max_masks"]]
    knots = settings.get("calibration", ())
    entities = []
    for query in likeliest:
        if probability[query] <= 0 or calibrated(probability[query], knots) < settings["min_score"]:
            continue
        whole = resize(masks[query], (masks.shape[1] * 4, masks.shape[2] * 4))
        full = resize(whole[: fitted[0], : fitted[1]], photo_size)
        inside = full > 0
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if not len(rows):
            continue
        score = float(calibrated(probability[query] * np.mean(1 / (1 + np.exp(-full[inside]))), knots))
        if score >= settings["min_score"]:
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            area = int(inside.sum())
            entities.append(Entity(inside[box].copy(), int(rows[0]), int(columns[0]), area, score, int(query)))
    entities.sort(key=lambda entity: -entity.score)
    return without_duplicates(entities, settings["nms_threshold"])


def without_duplicates(entities: list[Entity], nms_threshold: float) -> list[Entity]:
    """NMS: the entities, by descending score, that do not overlap a better one by more than ``nms_threshold`` (IoU)."""
    kept: list[Entity] = []
    for entity in entities:
        shared = (overlap(entity, better) for better in kept) if nms_threshold < 1 else ()
        if not any(s > nms_threshold * (entity.area + better.area - s) for s, better in zip(shared, kept)):
            kept.append(entity)
    return kept


def overlap(a: Entity, b: Entity) -> int:
    """Intersection of two masks in pixels."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom = min(a.top + a.inside.shape[0], b.top + b.inside.shape[0])
    right = min(a.left + a.inside.shape[1], b.left + b.inside.shape[1])
    if bottom <= top or right <= left:
        return 0
    parts = (e.inside[top - e.top : bottom - e.top, left - e.left : right - e.left] for e in (a, b))
    return int(np.logical_and(*parts).sum())


def find_parents(entities: list[Entity], ancestors: np.ndarray | None, settings: dict[str, Any]) -> np.ndarray:
    """(N,) index of the parent of each entity, NO_PARENT for a whole.

    Args:
        entities: N.
        ancestors: (Q, Q) probabilities, [i, j]: i is an ancestor of j; None: use coverage alone.
        settings: metadata of the model.
    """
    areas = np.array([entity.area for entity in entities], np.int64)

    def coverage(k: int, others: np.ndarray) -> np.ndarray:
        return np.array([overlap(entities[k], entities[j]) for j in others]) / areas[k]

    if ancestors is None:
        everything = np.arange(len(entities))
        matrix = np.array([coverage(k, everything) for k in everything]).reshape(len(entities), len(entities))
        return parents_by_coverage(matrix, areas, settings["theta_cover_alone"], settings["max_child_area"])
    query = [entity.query for entity in entities]
    return parents_by_probability(
        ancestors[np.ix_(query, query)],
        areas,
        coverage,
        settings["ancestor_threshold"],
        settings["theta_cover"],
        settings["max_child_area"],
    )


def run_lengths(entity: Entity, size: tuple[int, int]) -> list[int]:
    """COCO's uncompressed RLE: column-major run lengths, starting with a run outside."""
    mask = np.zeros((size[1], size[0]), bool)  # transposed
    box = np.s_[entity.left : entity.left + entity.inside.shape[1], entity.top : entity.top + entity.inside.shape[0]]
    mask[box] = entity.inside.T
    changes = np.flatnonzero(np.diff(mask.ravel(), prepend=False)).tolist()
    bounds = [0, *changes, mask.size]
    return [end - start for start, end in zip(bounds, bounds[1:])]


def to_coco(
    entities: list[Entity], parents: np.ndarray, size: tuple[int, int], image_id: int, first_id: int
) -> list[dict[str, Any]]:
    """COCO annotations of one photo, with ``parent_id`` (0: a whole), ``depth`` and ``score``."""
    depths = depths_of(parents)
    return [
        {
            "id": first_id + k,
            "image_id": image_id,
            "category_id": 1,
            "iscrowd": 0,
            "area": entity.area,
            "bbox": [float(v) for v in (entity.left, entity.top, entity.inside.shape[1], entity.inside.shape[0])],
            "score": round(entity.score, 6),
            "parent_id": 0 if parents[k] == NO_PARENT else first_id + int(parents[k]),
            "depth": int(depths[k]),
            "segmentation": {"size": list(size), "counts": run_lengths(entity, size)},
        }
        for k, entity in enumerate(entities)
    ]


def overlay(photo: np.ndarray, entities: list[Entity], parents: np.ndarray) -> Image.Image:
    """Draw the masks over the photo, (H, W, 3) uint8: wholes first, then parts in other shades of the same hue."""
    picture = photo.astype(np.float32)
    depths = depths_of(parents)
    for k in sorted(range(len(entities)), key=lambda k: (depths[k], -entities[k].area)):
        root = k
        while parents[root] != NO_PARENT:
            root = parents[root]
        # steps of the golden ratio give distinct hues
        hue = (root * 0.618034 + 0.03 * (k % 3 - 1) * (depths[k] > 0)) % 1
        colour = 255 * np.array(colorsys.hls_to_rgb(hue, (0.5, 0.68, 0.34)[depths[k] % 3], 0.9))
        entity = entities[k]
        inside = entity.inside
        window = picture[entity.top : entity.top + inside.shape[0], entity.left : entity.left + inside.shape[1]]
        window[inside] = (1 - ALPHA) * window[inside] + ALPHA * colour
        within = np.pad(inside, 1)
        border = inside & ~(within[:-2, 1:-1] & within[2:, 1:-1] & within[1:-1, :-2] & within[1:-1, 2:])
        window[border] = colour
    return Image.fromarray(picture.round().astype(np.uint8))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--model", required=True, metavar="FILE", help="file written by tools/export_onnx.py")
    add("--input", required=True, nargs="+", type=Path, metavar="PHOTO")
    add("--output", required=True, type=Path, metavar="DIR", help="created if missing; files in it are replaced")
    add("--score-threshold", type=float, metavar="S", help="drop masks with a lower score (default: that of the model)")
    add("--max-masks", type=int, metavar="N", help="best masks per photo (default: that of the model)")
    add("--threads", type=int, default=0, metavar="N", help="threads of onnxruntime (default: one per core)")
    return parser.parse_args(arguments)


def open_model(path: str, threads: int) -> tuple[Any, dict[str, Any]]:
    """Open the session of a model, and read its metadata.

    Raises:
        WeightsError: not a file of tools/export_onnx.py.
    """
    import onnxruntime  # here, so that the decoding can be used without it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return session, json.loads(session.get_modelmeta().custom_metadata_map["sohes"])
    except Exception as error:  # onnxruntime has an exception type for each error code
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"{path!r} is not a model of tools/export_onnx.py, or damaged ({reason:.200})") from error


def find(args: argparse.Namespace) -> int:
    """Find the entities of the photos; returns the exit code."""
    check_output(args.output, folder=True)
    session, settings = open_model(args.model, args.threads)
    if args.score_threshold is not None:
        settings["min_score"] = args.score_threshold
    if args.max_masks is not None:
        settings["max_masks"] = args.max_masks
    input_size = tuple(session.get_inputs()[0].shape[2:])

    args.output.mkdir(parents=True, exist_ok=True)
    labels: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    skipped = 0
    for image_id, path in enumerate(args.input, start=1):
        try:
            photo = read_image(path)
        except ImageReadError as error:
            print(f"run_onnx: {error}", file=sys.stderr)
            skipped += 1
            continue
        size = photo.shape[:2]
        image, fitted = fit(Image.fromarray(photo), input_size, settings["pixel_mean"])
        logits, masks, *ancestors = (output[0] for output in session.run(None, {"image": image}))
        entities = find_entities(logits, masks, fitted, size, settings)
        parents = find_parents(entities, ancestors[0] if ancestors else None, settings)
        labels["images"].append({"id": image_id, "file_name": path.name, "height": size[0], "width": size[1]})
        labels["annotations"] += to_coco(entities, parents, size, image_id, len(labels["annotations"]) + 1)
        write_picture(args.output / f"{path.stem}.png", overlay(photo, entities, parents), "PNG")
        print(f"{path}: {len(entities)} masks, {np.count_nonzero(parents == NO_PARENT)} wholes")
    write_json(args.output / "labels.json", labels, indent=None)
    return EXIT_SKIPPED if skipped else EXIT_DONE


main = make_main("run_onnx", parse_arguments, find)


if __name__ == "__main__":
    sys.exit(main())

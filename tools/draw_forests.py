#!/usr/bin/env python
"""Draw the forests of a COCO json: for each image the photo, its wholes, parts, subparts, and the tree of its families.

    python tools/draw_forests.py --json output/demo/labels.json --images output/demo/images --output output/demo

Reads files of this project (``parent_id``, ``score``) and plain COCO (then every mask is a whole). Writes
forest_<name>.png. Exit code: 0 all drawn, 3 some images skipped (each with its reason), 2 the json or the arguments
cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.images import ImageReadError, read_image
from sohes_d2.visualization import MAX_MASKS, MIN_WIDTH, forest_figure
from sohes_d2.visualization.names import file_stem


def load_json(path: Path) -> tuple[list[dict[str, Any]], dict[Any, list[dict[str, Any]]]]:
    """The image records of a COCO file, and its annotations by image id.

    Raises:
        ValueError: the file cannot be read, or is no COCO file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise ValueError(f"{path} is no COCO file: it has no list 'images'")
    annotations = defaultdict(list)
    for annotation in content.get("annotations") or []:
        annotations[annotation["image_id"]].append(annotation)
    return content["images"], annotations


def draw_record(
    record: dict[str, Any],
    annotations: list[dict[str, Any]],
    images: Path,
    threshold: float = 0.0,
    width: int = 1600,
    max_masks: int = MAX_MASKS,
    max_area: float = 1.0,
    entities: int = 0,
) -> tuple[np.ndarray, Forest]:
    """The figure of one image record, and its forest.

    Raises:
        ImageReadError, ValueError: the photo or its masks cannot be used; the message says why.
    """
    image = read_image(images / record["file_name"])
    forest = Forest.from_coco(annotations, image.shape[:2])
    forest.check()
    if threshold > 0:
        forest = forest.subset(forest.scores >= threshold)
    if entities:
        forest = forest.select(entities, parts=True)
    figure = forest_figure(image, forest, Path(record["file_name"]).name, width, max_masks, max_area)
    return figure, forest


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=Path, help="COCO json with the masks")
    parser.add_argument("--images", required=True, type=Path, help="folder that the json's file names are relative to")
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures; made if missing")
    parser.add_argument(
        "--max-images", type=int, default=0, metavar="N", help="draw only the first N images (default: all)"
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.0,
        metavar="S",
        help="leave out masks with a lower score (default: %(default)s)",
    )
    parser.add_argument(
        "--width", type=int, default=1600, metavar="PIXELS", help="width of a picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max-masks",
        type=int,
        default=MAX_MASKS,
        metavar="N",
        help="show at most the N best-scored masks of an image; 0 shows all (default: %(default)s)",
    )
    parser.add_argument(
        "--max-area",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="leave masks out of the picture that cover more than this share of the photo (default: %(default)s)",
    )
    parser.add_argument(
        "--entities",
        type=int,
        default=20,
        metavar="N",
        help="draw the N entities that explain a photo best, and their parts; 0: all masks (default: %(default)s)",
    )
    args = parser.parse_args(arguments)
    if args.width < MIN_WIDTH:
        parser.error(f"--width must be at least {MIN_WIDTH}, got {args.width}")
    for option in ("max_images", "max_masks", "entities"):
        if getattr(args, option) < 0:
            parser.error(f"--{option.replace('_', '-')} must be positive, or 0 for all, got {getattr(args, option)}")
    if not args.images.is_dir():
        parser.error(f"--images {args.images} is not a folder")
    try:
        records, annotations = load_json(args.json)
    except ValueError as error:
        print(f"draw_forests: {error}", file=sys.stderr)
        return 2
    args.output.mkdir(parents=True, exist_ok=True)

    written: dict[str, int] = {}
    stems: set[str] = set()
    depths: Counter[int] = Counter()
    skipped = 0
    for record in records[: args.max_images or None]:
        try:
            figure, forest = draw_record(
                record,
                annotations[record["id"]],
                args.images,
                args.score_threshold,
                args.width,
                args.max_masks,
                args.max_area,
                args.entities,
            )
        except (ImageReadError, ValueError, OSError) as error:
            skipped += 1
            print(f"skipped {record.get('file_name')}: {error}", file=sys.stderr)
            continue
        name = f"forest_{file_stem(record['file_name'], stems)}.png"
        Image.fromarray(figure).save(args.output / name)
        written[name] = len(forest)
        depths.update(forest.depths().tolist())
        counts = np.bincount(np.minimum(forest.depths(), 2), minlength=3)
        print(
            f"{args.output / name}  {record['file_name']}: {len(forest)} masks"
            f" ({counts[0]} wholes, {counts[1]} parts, {counts[2]} subparts)"
        )
    total = sum(written.values())
    print(f"{len(written)} pictures, {total} masks, {total / max(1, len(written)):.1f} masks per image")
    print("masks by depth: " + (", ".join(f"{depth}: {depths[depth]}" for depth in sorted(depths)) or "none"))
    if skipped:
        print(f"{skipped} images skipped, reasons above", file=sys.stderr)
    return 3 if skipped else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Draw the forests of a COCO json: for each image the photo, its wholes, parts, subparts, and the tree of its families.

    python tools/draw_forests.py --json output/demo/labels.json --images output/demo/images --output output/demo

Reads files of this project (``parent_id``, ``score``) and plain COCO (then every mask is a whole). Writes
forest_<name>.png. Exit code: 0 all drawn, 3 some images or masks left out (with the reasons), 2 the json or the
arguments cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from sohes_d2.cli.runner import EXIT_SKIPPED, run_tool, tool_parser
from sohes_d2.structures.files import check_output
from sohes_d2.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sohes_d2.labels.schema import Annotation, ImageRecord, Problems
    from sohes_d2.structures.forest import Forest


def draw_record(
    record: ImageRecord,
    annotations: list[Annotation],
    images: Path,
    problems: Problems,
    threshold: float = 0.0,
    width: int = 1600,
    max_masks: int | None = None,
    max_area: float = 1.0,
    entities: int = 0,
) -> tuple[np.ndarray, Forest]:
    """The figure of one image record, and its forest; ``problems`` is told of masks that are left out.

    Raises:
        ImageReadError, ValueError: the photo or its masks cannot be used; the message says why.
    """
    from sohes_d2.labels.forests import read_forest
    from sohes_d2.structures.images import read_image
    from sohes_d2.visualization import MAX_MASKS, forest_figure

    if "file_name" not in record:
        raise InputError(f"image {record['id']!r} has no usable file_name")
    image = read_image(images / record["file_name"])
    forest, _ = read_forest(annotations, image.shape[:2], problems, record["file_name"])
    if threshold > 0:
        forest = forest.subset(forest.scores >= threshold)
    max_masks = MAX_MASKS if max_masks is None else max_masks
    if entities:
        forest = forest.select(entities, parts=True)
    figure = forest_figure(image, forest, Path(record["file_name"]).name, width, max_masks, max_area)
    return figure, forest


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 where it is wrong."""
    parser = tool_parser(__doc__)
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
        metavar="N",
        help="show at most the N best-scored masks of an image; 0 shows all (default: 60)",
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
    for option in ("max_images", "max_masks", "entities"):
        if (getattr(args, option) or 0) < 0:
            parser.error(f"--{option.replace('_', '-')} must be positive, or 0 for all, got {getattr(args, option)}")
    if not args.images.is_dir():
        parser.error(f"--images {args.images} is not a folder")
    return args


def draw(args: argparse.Namespace) -> int:
    """Draw the forests; returns the exit code."""
    # after the arguments, because these take seconds to import
    import numpy as np

    from sohes_d2.labels.reader import read_label_file
    from sohes_d2.structures.files import write_picture
    from sohes_d2.visualization import MIN_WIDTH
    from sohes_d2.visualization.names import file_stem

    if args.width < MIN_WIDTH:
        raise InputError(f"--width must be at least {MIN_WIDTH}, got {args.width}")
    check_output(args.output, folder=True)
    labels = read_label_file(args.json)
    if labels.is_result_list:
        raise InputError(f"{args.json} is a list of results, which has no file names; give a COCO file")
    problems = labels.problems
    args.output.mkdir(parents=True, exist_ok=True)

    written: dict[str, int] = {}
    stems: set[str] = set()
    depths: Counter[int] = Counter()
    skipped = 0
    for record in list(labels.images.values())[: args.max_images or None]:
        try:
            figure, forest = draw_record(
                record,
                labels.by_image[record["id"]],
                args.images,
                problems,
                args.score_threshold,
                args.width,
                args.max_masks,
                args.max_area,
                args.entities,
            )
        except (ValueError, OSError) as error:
            skipped += 1
            print(f"skipped {record.get('file_name', record['id'])!a}: {error}", file=sys.stderr)
            continue
        name = f"forest_{file_stem(record['file_name'], stems)}.png"
        write_picture(args.output / name, figure, "PNG")
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
    if problems:
        print(problems.summary(), file=sys.stderr)
    return EXIT_SKIPPED if skipped or problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_tool("draw_forests", parse_arguments, draw, arguments)


if __name__ == "__main__":
    sys.exit(main())

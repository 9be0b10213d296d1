"""Draw the forests of a COCO json: for each image the photo, its wholes, parts, subparts, and the tree.

    sohes draw --labels output/demo/labels.json --images output/demo/images --output output/demo

Reads files of this project (``parent_id``, ``score``) and plain COCO, where every mask is a whole. Writes
forest_<name>.png. Exit code: 0 all drawn, 3 some images or masks skipped (with reasons), 2 the json or the arguments
cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from ..structures.files import check_output
from .runner import (
    EXIT_SKIPPED,
    add_labels_option,
    add_photos_option,
    add_picture_options,
    add_selection_options,
    at_least,
    make_main,
    share,
    tool_parser,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes draw")
    add_labels_option(parser)
    add_photos_option(parser)
    add = parser.add_argument
    add("--output", required=True, type=Path, help="folder for the pictures; created if missing")
    add("--max-images", type=at_least(0), default=0, metavar="N", help="only the first N images (default: all)")
    what = "do not draw masks that cover more than this share of the photo (default: %(default)s)"
    add("--max-area", type=share, default=1.0, metavar="SHARE", help=what)
    add_picture_options(parser)
    add_selection_options(parser, entities=20)
    return parser.parse_args(arguments)


def draw(args: argparse.Namespace) -> int:
    """Draw the forests; returns the exit code."""
    # imported after parsing: these take seconds
    import numpy as np

    from ..labels.forests import read_forest
    from ..labels.reader import read_label_file
    from ..labels.schema import image_name
    from ..structures.entity import Selection
    from ..structures.files import write_picture
    from ..structures.images import read_image
    from ..visualization import forest_figure
    from ..visualization.draw import file_stem

    check_output(args.output, folder=True)
    labels = read_label_file(args.labels)
    problems = labels.problems
    folder, labels = labels.for_photos(args.images)
    selection = Selection(args.entities, args.min_score, args.max_depth)
    args.output.mkdir(parents=True, exist_ok=True)

    written: dict[str, int] = {}
    stems: set[str] = set()
    depths: Counter[int] = Counter()
    skipped = 0
    for record in list(labels.images.values())[: args.max_images or None]:
        try:
            name = image_name(record)
            image = read_image(folder / name)
            forest, _ = read_forest(labels.by_image[record["id"]], image.shape[:2], problems, name)
            forest = selection(forest)
            figure = forest_figure(image, forest, Path(name).name, args.width, args.max_masks, args.max_area)
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


main = make_main("sohes draw", parse_arguments, draw)

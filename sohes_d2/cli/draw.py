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
from typing import TYPE_CHECKING

from ..errors import InputError
from ..structures.files import check_output
from .runner import (
    EXIT_SKIPPED,
    add_labels_option,
    add_photos_option,
    add_selection_options,
    check_photos,
    count,
    run_tool,
    tool_parser,
)

if TYPE_CHECKING:
    import numpy as np

    from ..labels.schema import Annotation, ImageRecord, Problems
    from ..structures.entity import Selection
    from ..structures.forest import Forest


def draw_record(
    record: ImageRecord,
    annotations: list[Annotation],
    images: Path,
    problems: Problems,
    selection: Selection | None = None,
    width: int = 1600,
    max_masks: int | None = None,
    max_area: float = 1.0,
) -> tuple[np.ndarray, Forest]:
    """Draw one image record; returns the figure and the forest. Skipped masks are added to ``problems``.

    Raises:
        ImageReadError, ValueError: the photo or its masks cannot be used.
    """
    from ..labels.forests import read_forest
    from ..labels.schema import image_name
    from ..structures.images import read_image
    from ..visualization import MAX_MASKS, forest_figure

    name = image_name(record)
    image = read_image(images / name)
    forest, _ = read_forest(annotations, image.shape[:2], problems, name)
    forest = selection(forest) if selection else forest
    max_masks = MAX_MASKS if max_masks is None else max_masks
    figure = forest_figure(image, forest, Path(name).name, width, max_masks, max_area)
    return figure, forest


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes draw")
    add_labels_option(parser)
    add_photos_option(parser)
    parser.add_argument("--output", required=True, type=Path, help="folder for the pictures; created if missing")
    parser.add_argument(
        "--max-images", type=count, default=0, metavar="N", help="draw only the first N images (default: all)"
    )
    parser.add_argument(
        "--width", type=int, default=1600, metavar="PIXELS", help="width of a picture (default: %(default)s)"
    )
    parser.add_argument(
        "--max-masks",
        type=count,
        metavar="N",
        help="show at most the N best-scored masks of an image; 0 shows all (default: 60)",
    )
    parser.add_argument(
        "--max-area",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="do not draw masks that cover more than this share of the photo (default: %(default)s)",
    )
    add_selection_options(parser, entities=20)
    args = parser.parse_args(arguments)
    check_photos(parser, args.images)
    return args


def draw(args: argparse.Namespace) -> int:
    """Draw the forests; returns the exit code."""
    # imported after parsing: these take seconds
    import numpy as np

    from ..labels.reader import read_label_file
    from ..structures.entity import Selection
    from ..structures.files import write_picture
    from ..visualization import MIN_WIDTH
    from ..visualization.draw import file_stem

    if args.width < MIN_WIDTH:
        raise InputError(f"--width must be at least {MIN_WIDTH}, got {args.width}")
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
            figure, forest = draw_record(
                record,
                labels.by_image[record["id"]],
                folder,
                problems,
                selection,
                args.width,
                args.max_masks,
                args.max_area,
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
    return run_tool("sohes draw", parse_arguments, draw, arguments)

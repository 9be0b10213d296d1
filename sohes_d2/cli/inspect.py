"""Statistics of labels: counts, depths, sizes, image coverage, and unusual images.

    sohes inspect --labels labels.json
    sohes inspect --labels labels/ --plot labels.png --output labels_inspected.json

--labels is a COCO json, of this project or any other, or a folder of shards, finished or not. It is read image by
image, in bounded memory. Without ``parent_id`` every mask counts as a whole. Crowd regions are skipped.

Exit code: 0 all read, 3 some masks or images are broken (counted and listed), 2 the labels or arguments cannot be used.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from ..structures.files import check_output
from .runner import EXIT_SKIPPED, run_tool, tool_parser

if TYPE_CHECKING:
    from ..labels.statistics import LabelStatistics

PROBLEMS_SHOWN = 20  # the file of --output has the counts of all, by reason


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes inspect")
    add = parser.add_argument
    add("--labels", "--json", required=True, metavar="COCO.json|DIR", help="COCO json, or folder of shards")
    add("--plot", metavar="FILE.png", help="write four histograms")
    add("--output", metavar="FILE.json", help="write all numbers")
    add("--max-images", type=int, default=0, metavar="N", help="read N images, evenly spread; 0: all (default: 0)")
    add("--list", type=int, default=5, metavar="K", help="list the K most unusual images (default: 5)")
    args = parser.parse_args(arguments)
    for name in ("max_images", "list"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')} must be 0 or positive, got {getattr(args, name)}")
    if args.plot and not args.plot.lower().endswith(".png"):
        parser.error(f"--plot must end in .png, got {args.plot!r}")
    return args


def inspect(args: argparse.Namespace) -> int:
    """Read the labels and print their statistics; returns the exit code."""
    # imported after parsing: these take seconds
    from ..labels.statistics import inspect_labels
    from ..structures.files import write_json

    for option, path in (("--plot", args.plot), ("--output", args.output)):
        if path:
            check_output(path, folder=False, option=option)
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    statistics = inspect_labels(args.labels, args.max_images, args.list)
    if args.plot:
        _plot(args.plot, statistics, os.path.basename(os.path.normpath(args.labels)))
    if args.output:
        write_json(args.output, statistics.summary())
    print(report(statistics))
    for problem in statistics.problems.items[:PROBLEMS_SHOWN]:
        print(_printable(problem), file=sys.stderr)
    if statistics.problems:
        print(_printable(statistics.problems.summary()), file=sys.stderr)
    return EXIT_SKIPPED if statistics.problems else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_tool("sohes inspect", parse_arguments, inspect, arguments)


def report(statistics: LabelStatistics) -> str:
    """The tables as text."""
    from tabulate import tabulate

    found = statistics.summary()
    masks = max(1, found["masks"])
    spreads = [
        ["masks per image", *_numbers(found["masks_per_image"], "{:.4g}")],
        ["deepest mask of an image", *_numbers(found["deepest_of_image"], "{:.4g}")],
        ["coverage of an image", *_numbers(found["coverage"], "{:.1%}")],
    ]
    histogram = [["depth " + depth, n, f"{n / masks:.1%}"] for depth, n in found["depth_histogram"].items()]
    for key, what in (("size_histogram", " (COCO)"), ("relative_size_histogram", " of the image")):
        histogram += [[name + what, n, f"{n / masks:.1%}"] for name, n in found[key].items()]
    parts = [
        f"{found['images']} images, {found['masks']} masks"
        + (f", {found['crowds']} crowd regions" if found["crowds"] else "")
        + ("" if found["has_hierarchy"] else "; no parent_id, so all masks are wholes"),
        tabulate(spreads, headers=["", "least", "mean", "median", "most"], tablefmt="pipe", disable_numparse=True),
        tabulate(histogram, headers=["masks", "count", "share"], tablefmt="pipe", disable_numparse=True),
    ]
    rows = [
        [name if k == 0 else "", _printable(row.file_name), row.masks, row.depth, f"{row.coverage:.1%}"]
        for name, images in statistics.outstanding.items()
        for k, row in enumerate(images)
    ]
    if rows:
        headers = ["images that stand out", "file", "masks", "depth", "coverage"]
        parts.append(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join(parts)


def _numbers(spread: dict[str, float], form: str) -> list[str]:
    return [form.format(spread[name]) for name in ("min", "mean", "median", "max")]


def _plot(path: str, statistics: LabelStatistics, title: str) -> None:
    from ..labels.statistics import AREA_BINS
    from ..structures.files import write_picture
    from ..visualization.label_plots import plot_label_statistics

    picture = plot_label_statistics(
        statistics.masks_per_image.tolist(),
        statistics.coverage.tolist(),
        statistics.depth,
        statistics.area_histogram,
        AREA_BINS,
        f"{_printable(title)}: {statistics.images} images, {statistics.masks} masks",
    )
    write_picture(path, picture, "PNG")


def _printable(text: str) -> str:
    """A file name without terminal control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

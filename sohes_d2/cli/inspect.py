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
from .runner import EXIT_SKIPPED, at_least, make_main, printable, tool_parser

if TYPE_CHECKING:
    import numpy as np

    from ..labels.statistics import LabelStatistics

PROBLEMS_SHOWN = 20  # the file of --output has the counts of all, by reason
# Colours of the plots, from the palette of wholes: distinguishable with colour blindness
_BLUE, _ORANGE, _GREEN, _PINK = "#3573d9", "#e8953a", "#2aa876", "#d9569a"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes inspect")
    add = parser.add_argument
    add("--labels", "--json", required=True, metavar="COCO.json|DIR", help="COCO json, or folder of shards")
    add("--plot", metavar="FILE.png", help="write four histograms")
    add("--output", metavar="FILE.json", help="write all numbers")
    add(
        "--max-images",
        type=at_least(0),
        default=0,
        metavar="N",
        help="read N images, evenly spread; 0: all (default: 0)",
    )
    add("--list", type=at_least(0), default=5, metavar="K", help="list the K most unusual images (default: 5)")
    args = parser.parse_args(arguments)
    if args.plot and not args.plot.lower().endswith(".png"):
        parser.error(f"--plot must end in .png, got {args.plot!r}")
    return args


def inspect(args: argparse.Namespace) -> int:
    """Read the labels and print their statistics; returns the exit code."""
    # imported after parsing: these take seconds
    from ..labels.statistics import inspect_labels
    from ..structures.files import write_json, write_picture

    for option, path in (("--plot", args.plot), ("--output", args.output)):
        if path:
            check_output(path, folder=False, option=option)
            os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    statistics = inspect_labels(args.labels, args.max_images, args.list)
    if args.plot:
        name = printable(os.path.basename(os.path.normpath(args.labels)))
        picture = plot(statistics, f"{name}: {statistics.images} images, {statistics.masks} masks")
        write_picture(args.plot, picture, "PNG")
    if args.output:
        write_json(args.output, statistics.summary())
    print(report(statistics))
    for problem in statistics.problems.items[:PROBLEMS_SHOWN]:
        print(printable(problem), file=sys.stderr)
    if statistics.problems:
        print(printable(statistics.problems.summary()), file=sys.stderr)
    return EXIT_SKIPPED if statistics.problems else 0


main = make_main("sohes inspect", parse_arguments, inspect)


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
        [name if k == 0 else "", printable(row.file_name), row.masks, row.depth, f"{row.coverage:.1%}"]
        for name, images in statistics.outstanding.items()
        for k, row in enumerate(images)
    ]
    if rows:
        headers = ["images that stand out", "file", "masks", "depth", "coverage"]
        parts.append(tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True))
    return "\n\n".join(parts)


def _numbers(spread: dict[str, float], form: str) -> list[str]:
    return [form.format(spread[name]) for name in ("min", "mean", "median", "max")]


def plot(statistics: LabelStatistics, title: str) -> np.ndarray:
    """Four histograms, (H, W, 3) uint8 RGB: masks per image, depth of masks, size of masks, and coverage of images."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot, which would choose a backend for the whole process
    from matplotlib.ticker import MaxNLocator

    from ..labels.statistics import AREA_BINS

    figure = Figure(figsize=(11, 7.5), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    counts, depths, sizes, covered = figure.subplots(2, 2).ravel()
    # "$" would start a formula
    figure.suptitle(title.replace("$", r"\$"), fontsize=13)

    masks_per_image = statistics.masks_per_image.tolist()
    most = max(masks_per_image, default=0) + 1
    counts.hist(masks_per_image, bins=np.linspace(0, most, min(40, most) + 1), color=_BLUE)
    counts.set(title="Masks per image", xlabel="masks", ylabel="images")
    levels = range(max(statistics.depth, default=0) + 1)
    bars = depths.bar([str(level) for level in levels], [statistics.depth[level] for level in levels], color=_ORANGE)
    if len(levels) <= 12:
        depths.bar_label(bars, fontsize=8)
    depths.set(title="Depth (0: wholes, 1: parts, 2 and more: subparts)", xlabel="depth", ylabel="masks")
    sizes.stairs(statistics.area_histogram, AREA_BINS, fill=True, color=_GREEN)
    sizes.set(title="Size of masks", xlabel="share of the image", ylabel="masks", xscale="log")
    covered.hist(statistics.coverage.tolist(), bins=np.linspace(0, 1, 21), color=_PINK)
    covered.set(title="Coverage of the images", xlabel="share under any mask", ylabel="images", xlim=(0, 1))
    for axes in (counts, depths, sizes, covered):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

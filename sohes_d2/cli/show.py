"""Make an html page to browse the forests of a COCO json: wholes, parts and subparts.

    sohes show --labels output/demo/labels.json --images output/demo/images --output report.html
    sohes show --labels entities_val.json --images val/ --compare predictions.json \\
        --metrics metrics.json --output report.html

The page is a single file that needs no network. --labels is a file of this project or any COCO json; without
``parent_id`` the hierarchy is computed from the masks. --compare is shown beside it, with masks of IoU 0.5 or more
linked; it is another such file, with images matched by file name, or a COCO result list with the same image ids.

Exit code: 0 everything is in the page, 3 written, but some photos or masks could not be shown (with reasons), 2 the
files or arguments cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..structures.files import check_output
from .runner import EXIT_SKIPPED, add_labels_option, add_photos_option, at_least, make_main, share, tool_parser

LARGE_PAGE = 100 << 20  # bytes; browsers open larger pages, but slowly
MESSAGES = 20  # printed per kind; the page has all of them


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes show")
    add = parser.add_argument
    add_labels_option(parser)
    add_photos_option(parser)
    add("--output", required=True, type=Path, metavar="REPORT.html", help="page to write; its folder is created")
    add("--compare", type=Path, metavar="OTHER.json", help="show these masks beside those of --labels")
    add("--metrics", type=Path, metavar="METRICS.json", help="scores to show, from sohes evaluate --output")
    what = "first show the N entities that explain a photo best, 0: all masks (default: %(default)s)"
    add("--entities", type=at_least(0), default=20, metavar="N", help=what)
    add("--title", default="", help="title of the page (default: the names of the files)")
    add("--max-images", type=at_least(0), default=0, metavar="N", help="only the first N images (default: all)")
    what = "downsize larger pictures and their masks to this (default: %(default)s)"
    add("--max-side", type=at_least(64), default=1024, metavar="PIXELS", help=what)
    what = "only the N best-scored masks of an image (default: all)"
    add("--max-masks", type=at_least(0), default=0, metavar="N", help=what)
    what = "drop masks with a lower score, from 0 to 1 (default: keep all)"
    add("--min-score", "--score-threshold", type=share, metavar="S", help=what)
    return parser.parse_args(arguments)


def build_page(args: argparse.Namespace) -> int:
    """Write the page and print a summary; returns the exit code."""
    from ..report import ReportOptions, read_label_file, read_metrics, write_report

    options = ReportOptions(
        max_images=args.max_images,
        max_side=args.max_side,
        max_masks=args.max_masks,
        score_threshold=args.min_score,
        title=args.title,
        entities=args.entities,
    )
    check_output(args.output, folder=False)
    folder, file = read_label_file(args.labels).for_photos(args.images)
    other = read_label_file(args.compare, results_allowed=True) if args.compare else None
    metrics = read_metrics(args.metrics) if args.metrics else None
    args.output.parent.mkdir(parents=True, exist_ok=True)
    summary = write_report(args.output, file, folder, other, metrics, options)

    masks = " and ".join(f"{count} masks of {name}" for count, name in zip(summary.masks, (args.labels, args.compare)))
    print(f"{args.output}: {summary.images} images, {masks}, {summary.size / 2**20:.1f} MB")
    if other is not None:
        print(f"{summary.matched} masks matched; {summary.unmatched_images} images are not in {args.compare}")
    if summary.crowds:
        print(f"{summary.crowds} crowd regions skipped")
    for source in (file, other):
        if source is not None and source.problems:
            print(f"{source.path}: {source.problems.summary()}", file=sys.stderr)
    if summary.size > LARGE_PAGE:
        print("the page is large; --max-images, --max-masks and --max-side make it smaller")
    _print_some(summary.missing, "photos are shown as missing")
    _print_some(summary.problems, "problems")
    return 0 if summary.complete and not (file.problems or other is not None and other.problems) else EXIT_SKIPPED


main = make_main("sohes show", parse_arguments, build_page)


def _print_some(messages: list[str], what: str) -> None:
    if not messages:
        return
    for message in messages[:MESSAGES]:
        print(message, file=sys.stderr)
    rest = f"; {len(messages) - MESSAGES} more are not printed" if len(messages) > MESSAGES else ""
    print(f"{len(messages)} {what}, reasons above{rest}", file=sys.stderr)

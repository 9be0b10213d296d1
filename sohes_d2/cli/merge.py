"""Join a folder of label shards into one COCO file, in bounded memory.

    sohes merge labels/ labels.json

The file has the same bytes as one written by a single run of sohes label. errors.json and summary.json of all jobs are
joined beside it, and an index (labels.index.npz) lets it be opened without reading it.

Exit code: 0 joined, 3 joined but some images have no labels (errors.json), 2 shards are missing or usage error.
"""

from __future__ import annotations

import argparse
import sys

from ..structures.files import check_output
from .runner import make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes merge")
    parser.add_argument("folder", help="folder of shards")
    parser.add_argument("output", help="COCO file to write, ends in .json")
    parser.add_argument(
        "--allow-incomplete", action="store_true", help="join the existing shards even if some are missing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args(arguments)


def merge(args: argparse.Namespace) -> int:
    """Join the shards; returns the exit code."""
    from ..labeling.run import join_folder

    check_output(args.output, folder=False, option="the output")
    report = join_folder(args.folder, args.output, args.allow_incomplete, args.overwrite)
    print(f"{report.summary['images']} images, {report.summary['masks']} masks -> {report.output}")
    if report.skipped:
        print(f"{len(report.skipped)} images have no labels, see errors.json", file=sys.stderr)
    return report.exit_code


main = make_main("sohes merge", parse_arguments, merge)

"""Shared command line of `datasets/prepare_*.py`: options, output, exit codes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ..structures.files import check_output
from .runner import EXIT_DONE, EXIT_SKIPPED, make_main, tool_parser


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Parser with the common options: --root, --output, --limit, --no-images."""
    parser = tool_parser(description)
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        metavar="DIR",
        help="folder of all data sets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument("--output", metavar="FILE", help="file to write (default: the path of the registered data set)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N images; 0 for all")
    parser.add_argument("--no-images", action="store_true", help="do not check that the images exist")
    return parser


def run(
    name: str,
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    body: Callable[[argparse.Namespace], Any],
) -> int:
    """Run the command line of a script.

    Args:
        name: name of the script, for messages.
        parser: created by `make_parser`.
        arguments: command line; default: ``sys.argv``.
        body: returns the `sohes_d2.data.benchmarks.conversion.Summary` of the file it wrote, or None.

    Returns:
        The exit code: 0 all images converted, 3 some skipped (reasons are in the file), 2 the input cannot be used,
        1 failed.
    """

    def parse(arguments: list[str] | None) -> argparse.Namespace:
        args = parser.parse_args(arguments)
        if args.limit < 0:
            parser.error(f"--limit must be 0 or positive, got {args.limit}")
        return args

    def command(args: argparse.Namespace) -> int:
        if args.output is not None:
            check_output(args.output, folder=False)
        summary = body(args)
        if summary is None:
            return EXIT_DONE
        print(summary)
        return EXIT_SKIPPED if summary.skipped else EXIT_DONE

    return make_main(name, parse, command, when_stopped="run the same command to continue")(arguments)

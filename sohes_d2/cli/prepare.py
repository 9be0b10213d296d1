"""What the command lines of `datasets/prepare_*.py` share: options, output, exit codes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

from ..structures.files import check_output
from .runner import EXIT_DONE, EXIT_SKIPPED, run_tool, tool_parser


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with what every script has: --root, --output, --limit, --no-images."""
    parser = tool_parser(description)
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        metavar="DIR",
        help="folder of all data sets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument(
        "--output", metavar="FILE", help="file to write (default: where the registered data set has it)"
    )
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="only the first N images; 0 for all")
    parser.add_argument("--no-images", action="store_true", help="do not check that the images are there")
    return parser


def run(
    name: str,
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    body: Callable[[argparse.Namespace], Any],
) -> int:
    """Run a script's command line.

    Args:
        name: of the script, for messages.
        parser: of `make_parser`.
        arguments: those of the process by default.
        body: gives the `sohes_d2.data.benchmarks.conversion.Summary` of the file it wrote, None if it wrote none.

    Returns:
        The exit code: 0 all images converted, 3 some skipped (their reasons are in the file), 2 the input cannot be
        used, 1 it failed.
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

    return run_tool(name, parse, command, arguments, when_stopped="the same command goes on")

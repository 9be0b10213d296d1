"""Shared command line of `datasets/prepare_*.py`: options, output, exit codes."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..data.benchmarks.builtin import BUILTIN
from ..structures.files import check_output
from .runner import EXIT_DONE, EXIT_SKIPPED, at_least, make_main, tool_parser


def make_parser(
    description: str | None, splits: Sequence[str] = (), paths: Sequence[str] = ("annotations", "images")
) -> argparse.ArgumentParser:
    """Parser with the common options --root, --output, --limit and --no-images.

    Args:
        description: docstring of the script, with the default paths under the root.
        splits: choices of --split, the default first; empty: no such option.
        paths: names of further options, for the paths of the source files.
    """
    parser = tool_parser(description)
    if splits:
        parser.add_argument("--split", choices=splits, default=splits[0], help="default: %(default)s")
    for path in paths:
        parser.add_argument(f"--{path}", metavar="PATH", help="default: see above")
    parser.add_argument(
        "--root",
        default=os.environ.get("DETECTRON2_DATASETS", "datasets"),
        metavar="DIR",
        help="folder of all data sets (default: $DETECTRON2_DATASETS, else datasets)",
    )
    parser.add_argument("--output", metavar="FILE", help="file to write (default: the path of the registered data set)")
    parser.add_argument("--limit", type=at_least(0), default=0, metavar="N", help="only the first N images; 0 for all")
    parser.add_argument("--no-images", action="store_true", help="do not check that the images exist")
    return parser


def fill_paths(args: argparse.Namespace, dataset: str, **defaults: str) -> None:
    """Set the paths that are not given on the command line to their defaults.

    Args:
        args: parsed by `make_parser`.
        dataset: name of a built-in data set, whose paths are the defaults of ``output`` and ``images``.
        defaults: other options, and their default paths under the root.
    """
    files = BUILTIN[dataset]
    for option, default in {"output": files.labels, "images": files.images, **defaults}.items():
        if getattr(args, option, None) is None:
            setattr(args, option, os.path.join(args.root, default))


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

    def command(args: argparse.Namespace) -> int:
        if args.output is not None:
            check_output(args.output, folder=False)
        summary = body(args)
        if summary is None:
            return EXIT_DONE
        print(summary)
        return EXIT_SKIPPED if summary.skipped else EXIT_DONE

    return make_main(name, parser.parse_args, command, when_stopped="run the same command to continue")(arguments)

"""Shared code of all commands: options, exit codes, and one-line error messages.

    main = make_main("sohes demo", parse_arguments, show)

Nothing expensive is imported here, so that ``--help`` and usage errors are fast; commands import the rest in the
function that does the work.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from textwrap import shorten
from typing import Any

from ..errors import ConfigError, InputError, SOHESError, WeightsError

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED, EXIT_STOPPED = 0, 1, 2, 3, 130

# Errors that the user can fix in the command or its files; all others count as failures.
_USAGE_ERRORS = (ConfigError, InputError, WeightsError)
_MAX_LINE = 1000  # characters


def tool_parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """Create a parser with the common options ``--debug`` and ``--verbose``.

    Args:
        description: docstring of the command, shown unformatted.
        options: arguments of `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    parser.add_argument("-v", "--verbose", action="store_true", help="print all log messages and warnings")
    return parser


def make_main(
    name: str,
    parse: Callable[[list[str] | None], argparse.Namespace],
    command: Callable[[argparse.Namespace], int | None],
    *,
    log_level: int = logging.WARNING,
    when_stopped: str = "",
    when_failed: str = "",
) -> Callable[..., int]:
    """Make the ``main(arguments=None)`` of a command, which reports errors in one line and returns the exit code.

    That is the code of ``command``, EXIT_USAGE for errors that the user can fix (`InputError`, `ConfigError`,
    `WeightsError`), EXIT_FAILED for all others, EXIT_STOPPED for Ctrl-C. The default of ``arguments`` is ``sys.argv``.

    Args:
        name: name of the command, the prefix of messages.
        parse: parses arguments with a parser of `tool_parser`; exits with code 2 if they are invalid.
        command: runs the command; returns the exit code, None for 0.
        log_level: level of messages on stderr.
        when_stopped: advice after Ctrl-C.
        when_failed: advice after a failure that is not a usage error.
    """

    def main(arguments: list[str] | None = None) -> int:
        args = parse(arguments)
        quieten(args.verbose or args.debug)
        logging.basicConfig(
            level=logging.DEBUG if args.debug else log_level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
        )
        if args.debug:
            logging.getLogger("PIL").setLevel(logging.INFO)
        try:
            return command(args) or EXIT_DONE
        except KeyboardInterrupt:
            print(f"\n{name}: stopped{when_stopped and '; ' + when_stopped}", file=sys.stderr)
            return EXIT_STOPPED
        except Exception as error:  # noqa: BLE001 - explained
            return report(name, error, args.debug, when_failed)

    return main


def report(name: str, error: BaseException, debug: bool = False, when_failed: str = "") -> int:
    """Print an error in one line, after its traceback if ``debug``; returns the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader of the output has exited, e.g. `head`: print nothing
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python would complain when flushing
        return EXIT_FAILED
    if debug:
        traceback.print_exception(type(error), error, error.__traceback__)
    code = EXIT_USAGE if isinstance(error, _USAGE_ERRORS) else EXIT_FAILED
    print(f"{name}: {explain(error, debug)}", file=sys.stderr)
    if when_failed and code == EXIT_FAILED:
        print(when_failed, file=sys.stderr)
    return code


def explain(error: BaseException, debug: bool = False) -> str:
    """Describe an error: its message, with the type in front if it is not one of this package's errors."""
    text = str(error)
    if isinstance(error, SOHESError):
        return text if len(text.splitlines()) <= 2 else shorten(text, _MAX_LINE)
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename!r}" if error.filename is not None else ""
        full = "; make room and run the command again" if error.errno == errno.ENOSPC else ""
        return f"{error.strerror}{where}{full}"
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "detectron2":
        return f"this needs Detectron2, which is not installed for {sys.executable}; `sohes setup` installs it"
    if isinstance(error, (ImportError, FloatingPointError)) and text:
        return shorten(text, _MAX_LINE)
    trace = "" if debug else " (--debug shows where)"
    return shorten(f"{type(error).__name__}: {text}".rstrip(": "), _MAX_LINE) + trace


def printable(text: str) -> str:
    """A text from a file, such as a file name, without terminal control characters."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def quieten(verbose: bool) -> None:
    """Silence deprecation warnings of libraries, in this process and its children."""
    if verbose:
        return
    for category in (FutureWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore::DeprecationWarning")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # warns if there is no CUDA


def choose_threads() -> int:
    """Limit OpenMP to the currently idle cores, unless OMP_NUM_THREADS is set; call it before importing torch.

    Threads that wait for busy cores waste CPU time: on two busy cores, a training step takes three times as much of
    it with two threads as with one.

    Returns:
        OMP_NUM_THREADS.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = available_cores()
        busy = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        os.environ["OMP_NUM_THREADS"] = str(max(1, round(cores - busy)))
    first = os.environ["OMP_NUM_THREADS"].partition(",")[0]
    return int(first) if first.isdecimal() else 1


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def at_least(least: int) -> Callable[[str], int]:
    """Argument type: an integer of at least ``least``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {value}")
        return value

    return number


def share(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, got {value}")
    return value


def existing(text: str) -> Path:
    """Argument type: the path of a file or folder."""
    path = Path(text)
    if not (path.is_dir() or path.is_file()):
        raise argparse.ArgumentTypeError(f"{text} is neither a folder nor a file")
    return path


def add_selection_options(parser: argparse.ArgumentParser, entities: int) -> None:
    """Add the options that select masks: ``--entities``, ``--min-score``, ``--max-depth``; see `Selection`.

    Args:
        parser: parser to extend.
        entities: default of ``--entities``; 0: all masks.
    """
    add = parser.add_argument
    what = "the N entities that explain a photo best, with their parts; 0: all masks (default: %(default)s)"
    add("--entities", type=at_least(0), default=entities, metavar="N", help=what)
    what = "drop masks with a lower score, from 0 to 1 (default: %(default)s)"
    add("--min-score", "--score-threshold", type=share, default=0.0, metavar="S", help=what)
    what = "drop masks deeper than this, 0: wholes only (default: any depth)"
    add("--max-depth", type=at_least(0), metavar="D", help=what)


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--width`` and ``--max-masks`` of the commands that draw pictures."""
    what = "width of the pictures (default: %(default)s)"
    parser.add_argument("--width", type=at_least(240), default=1600, metavar="PIXELS", help=what)
    what = "draw only the N best-scored masks of a photo; 0: all (default: %(default)s)"
    parser.add_argument("--max-masks", type=at_least(0), default=60, metavar="N", help=what)


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that score predictions."""
    add = parser.add_argument
    add("--pred", required=True, metavar="PRED.json", help="predictions: a COCO result list or a COCO file")
    what = "masks, boxes or both (default: segm)"
    add("--iou-type", nargs="+", choices=("segm", "bbox"), default=["segm"], help=what)
    what = "how to match images of a COCO file"
    add("--match", choices=("auto", "name", "basename", "id"), default="auto", help=what)
    what = "skip predicted images that are not in the ground truth, instead of failing"
    add("--ignore-unmatched", action="store_true", help=what)
    what = "auto: faster-coco-eval if installed; the numbers are the same"
    add("--backend", choices=("auto", "pycocotools", "faster-coco-eval"), default="auto", help=what)


def add_labels_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels``, a COCO json; ``--json`` is an older name."""
    what = "COCO json with the masks"
    parser.add_argument("--labels", "--json", required=True, type=Path, metavar="LABELS.json", help=what)


def add_photos_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--images`` of a command that reads labels."""
    what = "base folder of the file names in the labels, or a single photo"
    parser.add_argument("--images", required=True, type=existing, metavar="DIR|FILE", help=what)


def add_config_file(parser: argparse.ArgumentParser, what: str, required: bool = False) -> None:
    """Add ``--config``, a file or a name; ``--config-file`` is Detectron2's name for it."""
    parser.add_argument(
        "--config",
        "--config-file",
        dest="config_file",
        required=required,
        metavar="NAME|YAML",
        help=f"{what}: a file, or the name of a config shipped with the package, such as joint",
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add KEY VALUE pairs at the end of the command."""
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values, at the end of the command"
    )


def add_process_options(parser: argparse.ArgumentParser, num_gpus: int) -> None:
    """Add Detectron2's options for distributed training. `check_processes` checks the values."""
    add = parser.add_argument
    what = "0: the CPU; without GPUs: N processes on the CPU (default: %(default)s)"
    add("--num-gpus", type=int, default=num_gpus, metavar="N", help=what)
    add("--num-machines", type=int, default=1, metavar="N", help="default: 1")
    add("--machine-rank", type=int, default=0, metavar="I", help="rank of this machine, from 0")
    add("--dist-url", default="auto", metavar="tcp://HOST:PORT", help="URL of machine 0")


def check_processes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with code 2 if ``num_gpus``, ``num_machines`` and ``machine_rank`` are inconsistent."""
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("--num-gpus counts from 0, --num-machines from 1, and --machine-rank is below --num-machines")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--dist-url tcp://HOST:PORT of machine 0 is needed for several machines")

"""The command `sohes`: each subcommand is a module of this folder, imported on demand."""

from __future__ import annotations

import importlib
import sys

from ..errors import near_matches
from .runner import EXIT_DONE, EXIT_USAGE, report

# Command name -> summary. Its module has the same name, with "_" for "-".
COMMANDS = {
    "label": "find entities in photos (phase 1) and write them as COCO json",
    "merge": "join a folder of label shards to one file",
    "inspect": "statistics of labels: depths, sizes, coverage, unusual images",
    "show": "make an html page to browse labels",
    "draw": "draw labels as pictures",
    "convert": "convert labels to and from Label Studio, CVAT, LabelMe, YOLO, Pascal VOC, FiftyOne",
    "evaluate": "score labels or predictions against ground truth",
    "evaluate-predictions": "the same on a registered data set, in Detectron2's loop",
    "demo": "run phase 1 or a trained model on photos: labels, page and pictures",
    "train-borders": "train a border network for phase 1 on its labels",
    "pretrain": "train a backbone on photos without labels",
    "train": "train or evaluate a model (phases 2 and 3)",
    "export": "export the weights of one model from a checkpoint",
    "export-onnx": "export a trained model to ONNX or torch.export",
    "doctor": "check this installation",
    "setup": "install Detectron2, required for training and trained models",
}


def usage() -> str:
    """Return the text of ``sohes --help``."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items())
    return f"""usage: sohes COMMAND [options]

Self-supervised open-world hierarchical entity segmentation (SOHES).

{lines}

sohes COMMAND --help shows the options of a command; sohes --version prints the version."""


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand; returns its exit code.

    Args:
        arguments: the subcommand and its arguments; default: ``sys.argv``.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name, *rest = arguments or ["--help"]
    if name == "help" and rest:
        name, rest = rest[0], ["--help"]
    if name in ("-h", "--help", "help"):
        try:
            print(usage(), flush=True)
        except BrokenPipeError as error:
            return report("sohes", error)
        return EXIT_DONE if arguments else EXIT_USAGE
    if name == "--version":
        from .. import __version__

        print(f"sohes_d2 {__version__}")
        return EXIT_DONE
    if name not in COMMANDS:
        print(f"sohes: no command {name!r}.{near_matches(name, COMMANDS)} `sohes --help` lists them.", file=sys.stderr)
        return EXIT_USAGE
    return importlib.import_module(f".{name.replace('-', '_')}", __package__).main(rest)

"""The command `sohes`: each subcommand is a module of this folder, imported on demand."""

from __future__ import annotations

import importlib
import sys

from ..errors import near_matches
from .runner import EXIT_DONE, EXIT_USAGE, report

# Command name -> its module and a summary.
COMMANDS = {
    "label": ("label", "find entities in photos (phase 1) and write them as COCO json"),
    "merge": ("merge", "join a folder of label shards to one file"),
    "inspect": ("inspect", "statistics of labels: depths, sizes, coverage, unusual images"),
    "show": ("show", "make an html page to browse labels"),
    "draw": ("draw", "draw labels as pictures"),
    "convert": ("convert", "convert labels to and from Label Studio, CVAT, LabelMe, YOLO, Pascal VOC, FiftyOne"),
    "evaluate": ("evaluate", "score labels or predictions against ground truth"),
    "evaluate-predictions": ("evaluate_predictions", "the same on a registered data set, in Detectron2's loop"),
    "demo": ("demo", "run phase 1 or a trained model on photos: labels, page and pictures"),
    "train-borders": ("train_borders", "train a border network for phase 1 on its labels"),
    "pretrain": ("pretrain", "train a backbone on photos without labels"),
    "train": ("train", "train or evaluate a model (phases 2 and 3)"),
    "export": ("export", "export the weights of one model from a checkpoint"),
    "export-onnx": ("export_onnx", "export a trained model to ONNX or torch.export"),
    "doctor": ("doctor", "check this installation"),
    "setup": ("setup", "install Detectron2, required for training and trained models"),
}


def usage() -> str:
    """Return the text of ``sohes --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sohes COMMAND [options]",
            "",
            "Self-supervised open-world hierarchical entity segmentation (SOHES).",
            "",
            *lines,
            "",
            "sohes COMMAND --help shows the options of a command; sohes --version prints the version.",
        ]
    )


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
    return importlib.import_module(f".{COMMANDS[name][0]}", __package__).main(rest)

"""Self-correction of phase 1: train a border network on the labels of photos, then label the photos with it.

    sohes train-borders --images photos/ --output borders/
    sohes label --config joint --images photos/ --output labels.json \\
        EXPLORATION.BORDER.WEIGHTS borders/borders.safetensors

Each round labels the photos with the network of the previous round and trains that network further on these labels. The
network learns the mean of many noisy forests.

No human labels are used. To check whether the network improves the labels, compare them on ground truth with
sohes evaluate --against.

OUTPUT/round_1/ and so on contain labels/ and training/ of a round, OUTPUT/borders.safetensors the last network. If the
process is killed, the same command with --resume continues.

Exit code: 0 done, 1 failed, 2 usage error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..structures.files import check_output
from .runner import EXIT_SKIPPED, add_config_file, add_config_options, at_least, make_main, tool_parser

WEIGHTS = "borders.safetensors"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes train-borders")
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of photos, with sub-folders")
    add("--output", required=True, metavar="DIR", help="folder for the rounds and borders.safetensors")
    add_config_file(parser, "config of phase 1 (default: joint)")
    add("--training-config", default="border_student", metavar="NAME|YAML", help="default: %(default)s")
    add("--rounds", type=at_least(1), default=1, metavar="N", help="default: %(default)s")
    add("--workers", type=int, metavar="N", help="worker processes for labeling, 0: none (default: one per core)")
    add("--num-gpus", type=int, default=0, metavar="N", help="GPUs for training; 0: the CPU (default: %(default)s)")
    add("--resume", action="store_true", help="continue an existing output, or start")
    add_config_options(parser)
    return parser.parse_args(arguments)


def train_borders(args: argparse.Namespace) -> int:
    """Run all rounds; returns the exit code."""
    from ..config.load import load_config
    from ..data.sources import read_image_list
    from ..errors import InputError

    check_output(args.output, folder=True)
    output = Path(args.output)
    if (output / "round_1").exists() and not args.resume:
        raise InputError(f"{args.output!r} already has rounds; continue them with --resume, or use another --output")
    read_image_list(args.images)  # raises usage errors before hours of work
    load_config(args.config_file or "joint", args.opts)
    load_config(args.training_config)
    weights = ""
    for number in range(1, args.rounds + 1):
        folder = output / f"round_{number}"
        _label(args, folder / "labels", weights)
        _train(args, folder, weights)
        weights = str(folder / "training" / "model_final.pth")
    _export(weights, output / WEIGHTS)
    print(f"use it: EXPLORATION.BORDER.WEIGHTS {output / WEIGHTS}")
    return 0


def _label(args: argparse.Namespace, output: Path, weights: str) -> None:
    command = ["label", "--config", args.config_file or "joint", "--images", args.images, "--output", str(output)]
    workers = [] if args.workers is None else ["--workers", str(args.workers)]
    _run([*command, "--resume", *workers, *args.opts, "EXPLORATION.BORDER.WEIGHTS", weights])


def _train(args: argparse.Namespace, folder: Path, weights: str) -> None:
    options = ["DATASETS.REGISTER.round", f"{folder / 'labels'}, {args.images}", "DATASETS.TRAIN", "('round',)"]
    command = ["train", "--config", args.training_config, "--num-gpus", str(args.num_gpus), "--resume", *options]
    _run([*command, "OUTPUT_DIR", str(folder / "training"), "MODEL.WEIGHTS", weights])


def _run(arguments: list[str]) -> None:
    """Run a subcommand in a new process, so that its memory is freed afterwards.

    Raises:
        SOHESError: the subcommand failed; it has printed its own message.
    """
    from ..errors import SOHESError

    code = subprocess.run([sys.executable, "-m", "sohes_d2", *arguments]).returncode
    if code in (130, -2):
        raise KeyboardInterrupt
    if code not in (0, EXIT_SKIPPED):
        raise SOHESError(f"`sohes {arguments[0]}` ended with exit code {code}; fix that and continue with --resume")


def _export(checkpoint: str, path: Path) -> None:
    """Write the averaged network of a checkpoint as half-precision safetensors."""
    from ..exploration.border_network import LearnedBorders
    from .export import as_half, write_weights

    write_weights(as_half(LearnedBorders(checkpoint).network.state_dict()), str(path))


main = make_main("sohes train-borders", parse_arguments, train_borders, when_stopped="continue with --resume")

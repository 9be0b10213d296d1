"""What the command lines of all trainings share: processes, devices, logs, and how they end."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from ..correction import CollapseError
from ..data.training_labels import BrokenSampleError
from ..data.training_stream import NothingUsableError
from ..errors import InputError
from ..weights import WeightsError
from .checkpoint import CheckpointError
from .config_file import ConfigError, load_config
from .launch import launch

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130

USAGE_ERRORS = (
    CheckpointError,
    ConfigError,
    InputError,
    WeightsError,
)
FAILURES = (BrokenSampleError, CollapseError, FloatingPointError, NothingUsableError)


def check_processes(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the command with code 2 where ``num_gpus``, ``num_machines`` and ``machine_rank`` do not fit together."""
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("--num-gpus counts from 0, --num-machines from 1, and --machine-rank is below --num-machines")


def frozen_config(file: str, pairs: list[str], num_gpus: int) -> CfgNode:
    """Defaults, the file, KEY VALUE pairs, and the CPU where it is asked for or there is no GPU.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a file that cannot be read.
    """
    cfg = load_config(file, pairs)
    if cfg.MODEL.DEVICE.startswith("cuda") and (num_gpus == 0 or not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Log, seed and folder of one process, as Detectron2 sets them up, and our log beside its."""
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sohes_d2", abbrev_name="sohes_d2")


def run_processes(
    tool: str,
    run: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    device: str,
    usage_errors: tuple[type[Exception], ...] = (),
) -> int:
    """Call ``run(args)`` in ``args.num_gpus`` processes, at least one.

    Args:
        tool: its name, at the beginning of every message.
        run: can be pickled.
        args: with ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url``.
        device: MODEL.DEVICE; "cpu", or a machine without GPUs, makes them processes on the CPU.
        usage_errors: more of what the user can mend, beside USAGE_ERRORS.

    Returns:
        The exit code: 0, EXIT_FAILED, EXIT_USAGE or EXIT_STOPPED, the last three with a line that says why.
    """
    try:
        launch(
            _explained,
            max(args.num_gpus, 1),
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (tool, run, args, (*USAGE_ERRORS, *usage_errors)),
            use_gpus=device != "cpu" and torch.cuda.is_available(),
        )
    except ProcessExitedException as error:
        return error.exit_code
    except SystemExit as error:
        return error.code
    except KeyboardInterrupt:
        print(f"\n{tool}: stopped; go on with --resume", file=sys.stderr)
        return EXIT_STOPPED
    return 0


def _explained(
    tool: str,
    run: Callable[[argparse.Namespace], None],
    args: argparse.Namespace,
    usage_errors: tuple[type[Exception], ...],
) -> None:
    """``run(args)``, with a line instead of a traceback where that says enough; exits with a code then."""
    try:
        run(args)
    except usage_errors as error:
        if comm.is_main_process():
            print(f"{tool}: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except FAILURES as error:
        print(f"{tool}: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)

"""What the command lines of all trainings share: processes, devices, logs, and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..correction import CollapseError
from ..data.registration import DatasetMissingError, DatasetSpecError
from ..data.sources import SourceError
from ..data.training_labels import BrokenSampleError
from ..data.training_stream import NothingUsableError
from ..evaluation.errors import EvaluationError
from .checkpoint import CheckpointError
from ..config_file import load_config
from ..errors import ConfigError, FolderBusyError, OutputError, WeightsError
from ..structures.files import FolderLock, write_text
from .launch import ProcessDiedError, launch
from .writers import LOGGERS, log_to

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130

USAGE_ERRORS = (
    CheckpointError,
    ConfigError,
    DatasetMissingError,
    DatasetSpecError,
    EvaluationError,
    FolderBusyError,
    SourceError,
    WeightsError,
)
FAILURES = (
    BrokenSampleError,
    CollapseError,
    FloatingPointError,
    NothingUsableError,
    OutputError,
    ProcessDiedError,
)

logger = logging.getLogger(__name__)


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


_held: list[FolderLock] = []


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Folder, log, config.yaml and seed of one process, as Detectron2's ``default_setup``.

    OUTPUT_DIR is this run's alone until `run_processes` is over.

    Raises:
        FolderBusyError: another process writes into OUTPUT_DIR; in all processes.
        OutputError: OUTPUT_DIR cannot be written to; in all processes.
    """
    _hold(cfg.OUTPUT_DIR)
    rank = comm.get_rank()
    for name in LOGGERS:
        setup_logger(distributed_rank=rank, name=name, abbrev_name="d2" if name == "detectron2" else name)
    log_to(cfg.OUTPUT_DIR, rank)
    logger.info("Rank of current process: %d. World size: %d", rank, comm.get_world_size())
    logger.info("Environment info:\n%s", collect_env_info())
    logger.info("Command line arguments: %s", args)
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
        write_text(path, cfg.dump())
        logger.info("Full config saved to %s", path)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not getattr(args, "eval_only", False):
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _hold(folder: str) -> None:
    """Lock a folder for all processes, by the main one."""
    error: Exception | None = None
    if comm.is_main_process():
        try:
            _held.append(FolderLock(folder))
        except (FolderBusyError, OutputError) as found:
            error = found
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _let_go() -> None:
    while _held:
        _held.pop().release()


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
            _run,
            max(args.num_gpus, 1),
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (run, args),
            use_gpus=device != "cpu" and torch.cuda.is_available(),
        )
    except SystemExit as error:
        return error.code
    except KeyboardInterrupt:
        print(f"\n{tool}: stopped; go on with --resume", file=sys.stderr)
        return EXIT_STOPPED
    except (*USAGE_ERRORS, *usage_errors) as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except FAILURES as error:
        print(f"{tool}: {error}", file=sys.stderr)
        return EXIT_FAILED
    return 0


def _run(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """``run(args)`` in one process, which lets go of its folder at the end."""
    try:
        run(args)
    finally:
        _let_go()

"""Processes, devices, logging and exit codes of all training commands."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack

import torch

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..config.load import load_config
from ..errors import FolderBusyError, OutputError
from ..structures.files import FolderLock, check_output, write_text
from .launch import launch
from .writers import LOGGERS, log_to

logger = logging.getLogger(__name__)

_locks = ExitStack()  # holds the lock of OUTPUT_DIR until the end of `_run`

# Loggers with long or rarely useful messages: these go to log.txt, and to the terminal with --verbose.
_ONLY_IN_FILE = (
    "detectron2",  # environment and config
    "detectron2.data.build",
    "detectron2.data.common",
    "detectron2.engine.defaults",  # the model, layer by layer
    "detectron2.evaluation.evaluator",
    "detectron2.evaluation.testing",  # results to copy and paste
    "sohes_d2.evaluation.detection_metrics",
)


def frozen_config(file: str, pairs: list[str], num_gpus: int) -> CfgNode:
    """Frozen config from the defaults, the file and KEY VALUE pairs; on the CPU if ``num_gpus`` is 0 or without a GPU.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or an unreadable file.
    """
    cfg = load_config(file, pairs)
    if cfg.MODEL.DEVICE.startswith("cuda") and (num_gpus == 0 or not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Set up folder, log, config.yaml and seed of one process, like Detectron2's ``default_setup``.

    log.txt receives everything; the terminal output is brief unless ``args.verbose``. OUTPUT_DIR is locked for this run
    until the end of `run` in `run_processes`.

    Raises:
        FolderBusyError: another process writes into OUTPUT_DIR; raised in all processes.
        InputError: OUTPUT_DIR cannot be a folder.
        OutputError: OUTPUT_DIR cannot be written to; raised in all processes.
    """
    check_output(cfg.OUTPUT_DIR, folder=True, option="OUTPUT_DIR")
    _lock(cfg.OUTPUT_DIR)
    rank = comm.get_rank()
    for name in LOGGERS:
        configured = setup_logger(distributed_rank=rank, name=name, abbrev_name="d2" if name == "detectron2" else name)
        for handler in configured.handlers:
            handler.removeFilter(_is_brief)
            if not args.verbose and not isinstance(handler, logging.FileHandler):
                handler.addFilter(_is_brief)
    if not args.debug:
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_traceback)
    log_to(cfg.OUTPUT_DIR, rank)
    detail_logger = logging.getLogger("detectron2")
    detail_logger.info("Process %d of %d. Environment:\n%s", rank, comm.get_world_size(), collect_env_info())
    detail_logger.info("Command line arguments: %s", args)
    if comm.is_main_process():
        text = cfg.dump()
        write_text(os.path.join(cfg.OUTPUT_DIR, "config.yaml"), text)
        detail_logger.info("Config:\n%s", text)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    logger.info("%s receives config.yaml, log.txt (more than is printed here), metrics and checkpoints", cfg.OUTPUT_DIR)


def _lock(folder: str) -> None:
    """Lock a folder in the main process; an error is raised in all processes."""
    error: Exception | None = None
    if comm.is_main_process():
        try:
            _locks.callback(FolderLock(folder).release)
        except (FolderBusyError, OutputError) as raised:
            error = raised
    error = comm.all_gather(error)[0]
    if error is not None:
        raise error


def _is_brief(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.name not in _ONLY_IN_FILE


def _is_no_traceback(record: logging.LogRecord) -> bool:
    """False for the traceback that Detectron2 logs at the end of a training; the error is reported afterwards."""
    return not record.exc_info


def run_processes(run: Callable[[argparse.Namespace], None], args: argparse.Namespace, device: str) -> int:
    """Call ``run(args)`` in ``args.num_gpus`` processes, at least one.

    Args:
        run: can be pickled.
        args: with ``num_gpus``, ``num_machines``, ``machine_rank`` and ``dist_url``.
        device: MODEL.DEVICE; processes run on the CPU if it is "cpu" or there is no GPU.

    Returns:
        The exit code.

    Raises:
        Exception: the error of the process that failed first, see `launch`.
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
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    return 0


def _run(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call ``run(args)`` in one process, and release the lock of OUTPUT_DIR afterwards."""
    with _locks:
        run(args)

"""What the command lines of all trainings share: processes, devices, logs, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch.multiprocessing import ProcessExitedException

from ..cli.runner import EXIT_USAGE, check_output, report
from ..config_file import load_config
from .launch import launch

logger = logging.getLogger(__name__)

# Loggers whose messages are long or of use to few: they go to log.txt, and to the terminal with --verbose.
_ONLY_IN_FILE = (
    "detectron2",  # environment and config
    "detectron2.data.build",
    "detectron2.data.common",
    "detectron2.engine.defaults",  # the model, layer by layer
    "detectron2.evaluation.evaluator",
    "detectron2.evaluation.testing",  # results to copy and paste
    "sohes_d2.evaluation.backends",
)


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
    """Log, seed and folder of one process, as Detectron2 sets them up, and our log beside its.

    log.txt has everything; what is printed is brief unless ``args.verbose``.

    Raises:
        InputError: OUTPUT_DIR cannot be written.
    """
    check_output(cfg.OUTPUT_DIR, folder=True, option="OUTPUT_DIR")
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    rank = comm.get_rank()
    # The first two as default_setup calls them, which then finds them made.
    loggers = [
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore"),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="sohes_d2", abbrev_name="sohes_d2"),
    ]
    if not args.verbose:
        for handler in (handler for each in loggers for handler in each.handlers):
            if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):  # log.txt is a StreamHandler, too
                handler.addFilter(_is_brief)
    if not args.debug:
        logging.getLogger("detectron2.engine.train_loop").addFilter(_is_no_traceback)
    default_setup(cfg, args)
    logger.info("%s receives config.yaml, log.txt (more than is printed here), metrics and checkpoints", cfg.OUTPUT_DIR)


def _is_brief(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or record.name not in _ONLY_IN_FILE


def _is_no_traceback(record: logging.LogRecord) -> bool:
    """Detectron2 logs the traceback of what ends a training, which is explained afterwards."""
    return not record.exc_info


def run_processes(tool: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace, device: str) -> int:
    """Call ``run(args)`` in ``args.num_gpus`` processes, at least one.

    Args:
        tool: its name, at the beginning of every message.
        run: can be pickled.
        args: with ``num_gpus``, ``num_machines``, ``machine_rank``, ``dist_url`` and ``debug``.
        device: MODEL.DEVICE; "cpu", or a machine without GPUs, makes them processes on the CPU.

    Returns:
        The exit code, see `sohes_d2.cli.runner`; one that is not 0 with a line that says why.
    """
    try:
        launch(
            _explained,
            max(args.num_gpus, 1),
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (tool, run, args),
            use_gpus=device != "cpu" and torch.cuda.is_available(),
        )
    except ProcessExitedException as error:
        return error.exit_code
    except SystemExit as error:
        return error.code
    return 0


def _explained(tool: str, run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """``run(args)``, with a line instead of a traceback where that says enough; exits with a code then."""
    try:
        run(args)
    except Exception as error:  # noqa: BLE001 - explained
        code = _report_once(tool, error, args.debug)
        sys.exit(code)


def _report_once(tool: str, error: Exception, debug: bool) -> int:
    """What is wrong with the command is wrong for all processes, and told by the main one alone."""
    if comm.is_main_process():
        return report(tool, error, debug)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        code = report(tool, error)
    return code if code == EXIT_USAGE else report(tool, error, debug)

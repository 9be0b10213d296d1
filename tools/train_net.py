#!/usr/bin/env python
"""Train and evaluate a segmenter on pseudo-labels, as Detectron2 users know it.

    python tools/train_net.py --config-file configs/sohes_vitb8_sa1b_instruction.yaml --num-gpus 8
    python tools/train_net.py --config-file CONFIG.yaml --num-gpus 8 --resume
    python tools/train_net.py --config-file CONFIG.yaml --eval-only MODEL.WEIGHTS output/instruction/model_final.pth
    python tools/train_net.py --config-file CONFIG.yaml --num-gpus 0 \\
        DATASETS.REGISTER "mine: labels.json, photos/" DATASETS.TRAIN "('mine',)" DATASETS.TEST "()"

--num-gpus 0 trains on the CPU. Where torch sees no GPU, a config for CUDA runs on the CPU, and --num-gpus N means N
processes there.

OUTPUT_DIR receives config.yaml, log.txt, metrics.json (one line per 20 iterations), TensorBoard's files, checkpoints,
and evaluation.json, the results of the last evaluation in percent. After a kill the same command with --resume goes on
with the same losses.

Exit code: 0 done, 1 training failed or TEST.EXPECTED_RESULTS were not met, 2 usage error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 where it is wrong."""
    import sohes_d2  # noqa: F401  (before Detectron2, which it mends)

    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is missing; configs/ has some")
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("--num-gpus counts from 0, --num-machines from 1, and --machine-rank is below --num-machines")
    return args


def build_cfg(args: argparse.Namespace) -> Any:
    """The frozen config: defaults, the file, KEY VALUE pairs, and the CPU where it is asked for or there is no GPU.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a file that cannot be read.
    """
    import torch

    from sohes_d2.engine.config_file import load_config

    cfg = load_config(args.config_file, args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and (args.num_gpus == 0 or not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def prepare(args: argparse.Namespace) -> Any:
    """Config, data sets, log and seed of one process; returns the config."""
    from sohes_d2.data.registration import register_builtin_datasets, register_datasets
    from sohes_d2.engine.data_check import check_datasets
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    cfg = build_cfg(args)
    register_builtin_datasets()
    if cfg.DATASETS.REGISTER:
        register_datasets(cfg.DATASETS.REGISTER)
    check_datasets(cfg, train=not args.eval_only)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sohes_d2", abbrev_name="sohes_d2")
    return cfg


def run(args: argparse.Namespace) -> None:
    """Train or evaluate, in one of the processes."""
    cfg = prepare(args)

    from sohes_d2.engine.trainer import SOHESTrainer

    if args.eval_only:
        evaluate(cfg, args.resume)
        return
    trainer = SOHESTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def evaluate(cfg: Any, resume: bool) -> None:
    """Score MODEL.WEIGHTS, or the last checkpoint with ``resume``, on DATASETS.TEST; write evaluation.json.

    Exits with code 1 if TEST.EXPECTED_RESULTS are not met.
    """
    from sohes_d2.engine.checkpoint import SOHESCheckpointer
    from sohes_d2.engine.results import write_evaluation
    from sohes_d2.engine.trainer import SOHESTrainer
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    model = SOHESTrainer.build_model(cfg)
    checkpointer = SOHESCheckpointer(model, cfg.OUTPUT_DIR)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    extra = checkpointer.load(weights, checkpointables=[])
    results = SOHESTrainer.test(cfg, model)
    iteration = extra.get("iteration")
    done = iteration + 1 if isinstance(iteration, int) else None
    write_evaluation(cfg.OUTPUT_DIR, cfg.DATASETS.TEST, results, done, weights)
    if comm.is_main_process():
        verify_results(cfg, results)


def work(args: argparse.Namespace) -> None:
    """`run`, with a line instead of a traceback where the user can mend it; exits with a code where it fails."""
    from sohes_d2.correction import CollapseError
    from sohes_d2.data.registration import DatasetMissingError, DatasetSpecError
    from sohes_d2.data.training_labels import BrokenSampleError
    from sohes_d2.data.training_stream import NothingUsableError
    from sohes_d2.engine.checkpoint import CheckpointError
    from sohes_d2.engine.config_file import ConfigError
    from sohes_d2.evaluation.errors import EvaluationError
    from sohes_d2.weights import WeightsError
    from detectron2.utils import comm

    usage_errors = ConfigError, DatasetMissingError, DatasetSpecError, EvaluationError, CheckpointError, WeightsError
    try:
        run(args)
    except usage_errors as error:
        if comm.is_main_process():
            print(f"train_net: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (FloatingPointError, CollapseError, NothingUsableError, BrokenSampleError) as error:
        print(f"train_net: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(arguments)

    import torch
    from torch.multiprocessing import ProcessExitedException

    from sohes_d2.engine.config_file import ConfigError
    from sohes_d2.engine.launch import launch

    try:
        on_cpu = build_cfg(args).MODEL.DEVICE == "cpu" or not torch.cuda.is_available()
        launch(
            work,
            max(args.num_gpus, 1),
            args.num_machines,
            args.machine_rank,
            args.dist_url,
            (args,),
            use_gpus=not on_cpu,
        )
    except ConfigError as error:
        print(f"train_net: {error}", file=sys.stderr)
        return EXIT_USAGE
    except ProcessExitedException as error:
        return error.exit_code
    except SystemExit as error:
        return error.code
    except KeyboardInterrupt:
        print("\ntrain_net: stopped; go on with --resume", file=sys.stderr)
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

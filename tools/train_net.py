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
and evaluation.json, the results of the last evaluation in percent. It belongs to one training at a time. After a kill or
a full disk the same command with --resume goes on with the same losses; Ctrl-C and SIGTERM finish the iteration first.

Exit code: 0 done, 1 training failed or TEST.EXPECTED_RESULTS were not met, 2 usage error, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 where it is wrong."""
    import sohes_d2  # noqa: F401  (before Detectron2, which it mends)

    from sohes_d2.engine.training_command import check_processes
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog=__doc__)
    args = parser.parse_args(arguments)
    if not args.config_file:
        parser.error("--config-file is missing; configs/ has some")
    check_processes(parser, args)
    return args


def build_cfg(args: argparse.Namespace) -> Any:
    """The frozen config.

    Raises:
        ConfigError: see `frozen_config`.
    """
    from sohes_d2.engine.training_command import frozen_config

    return frozen_config(args.config_file, args.opts, args.num_gpus)


def prepare(args: argparse.Namespace) -> Any:
    """Config, data sets, log and seed of one process; returns the config."""
    from sohes_d2.data.registration import register_builtin_datasets, register_datasets
    from sohes_d2.engine.data_check import check_datasets
    from sohes_d2.engine.training_command import set_up

    cfg = build_cfg(args)
    register_builtin_datasets()
    if cfg.DATASETS.REGISTER:
        register_datasets(cfg.DATASETS.REGISTER)
    check_datasets(cfg, train=not args.eval_only)
    set_up(cfg, args)
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
    checkpointer = SOHESCheckpointer(model, cfg.OUTPUT_DIR, max_unmatched=0.0)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    extra = checkpointer.load(weights, checkpointables=[])
    results = SOHESTrainer.test(cfg, model)
    iteration = extra.get("iteration")
    done = iteration + 1 if isinstance(iteration, int) else None
    write_evaluation(cfg.OUTPUT_DIR, cfg.DATASETS.TEST, results, done, weights)
    if comm.is_main_process():
        verify_results(cfg, results)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(arguments)

    from sohes_d2.errors import ConfigError
    from sohes_d2.engine.training_command import EXIT_USAGE, run_processes

    try:
        device = build_cfg(args).MODEL.DEVICE
    except ConfigError as error:
        print(f"train_net: {error}", file=sys.stderr)
        return EXIT_USAGE
    return run_processes("train_net", run, args, device)


if __name__ == "__main__":
    sys.exit(main())

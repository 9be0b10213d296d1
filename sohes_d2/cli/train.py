"""Train and evaluate a segmenter on pseudo-labels, with the options of Detectron2's train_net.py.

    sohes train --config-file configs/sohes_vitb8_sa1b_instruction.yaml --num-gpus 8
    sohes train --config-file CONFIG.yaml --num-gpus 8 --resume
    sohes train --config-file CONFIG.yaml --eval-only MODEL.WEIGHTS output/instruction/model_final.pth
    sohes train --config-file CONFIG.yaml --num-gpus 0 \\
        DATASETS.REGISTER.mine "labels.json, photos/" DATASETS.TRAIN "('mine',)" DATASETS.TEST "()"

--num-gpus 0 trains on the CPU. If torch sees no GPU, a config for CUDA runs on the CPU, and --num-gpus N means N
processes.

OUTPUT_DIR receives config.yaml, log.txt, metrics.json (one line per 20 iterations), TensorBoard files, checkpoints,
and evaluation.json, the results of the last evaluation in percent. Only one training may use it at a time. If the
process is killed or the disk is full, the same command with --resume continues with the same losses; Ctrl-C and SIGTERM
finish the current iteration.

Exit code: 0 done, 1 training failed or TEST.EXPECTED_RESULTS were not met, 2 usage error, 3 trained without the invalid
labels of a COCO json, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..structures.files import check_output
from .runner import (
    EXIT_SKIPPED,
    add_config_file,
    add_config_options,
    add_process_options,
    check_processes,
    choose_threads,
    make_main,
    tool_parser,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes train")
    add = parser.add_argument
    add_config_file(parser, "config of the training", required=True)
    add("--resume", action="store_true", help="continue from the last checkpoint of OUTPUT_DIR, or start")
    add("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or with --resume the last checkpoint")
    add_process_options(parser, num_gpus=1)
    add_config_options(parser)
    args = parser.parse_args(arguments)
    check_processes(parser, args)
    return args


def run(args: argparse.Namespace) -> None:
    """Train or evaluate; runs in each process, and exits with code 3 if invalid labels were skipped."""
    from detectron2.utils import comm

    from ..data.registration import check_datasets, damaged_labels, register_builtin_datasets, register_datasets
    from ..engine.trainer import SOHESTrainer
    from ..engine.training_command import frozen_config, set_up
    from ..errors import ConfigError
    from ..weights.checkpoint import has_checkpoint

    cfg = frozen_config(args.config_file, args.opts, args.num_gpus)
    register_builtin_datasets()
    if cfg.DATASETS.REGISTER:
        register_datasets(cfg.DATASETS.REGISTER)
    check_datasets(cfg, train=not args.eval_only)
    if args.eval_only and not cfg.MODEL.WEIGHTS and not (args.resume and has_checkpoint(cfg.OUTPUT_DIR)):
        raise ConfigError(
            "--eval-only needs a trained model: pass MODEL.WEIGHTS FILE at the end of the command, or --resume to "
            "use the last checkpoint of OUTPUT_DIR"
        )
    if args.eval_only and cfg.TEST.MASKS_FROM != "queries":
        raise ConfigError(
            "--eval-only evaluates the model's queries alone; for TEST.MASKS_FROM trees or both, write the masks with "
            "sohes demo and evaluate its labels.json with sohes evaluate"
        )
    set_up(cfg, args)
    if args.eval_only:
        evaluate(cfg, args.resume)
        return
    trainer = SOHESTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()
    damaged = damaged_labels(cfg.DATASETS.TRAIN)
    if damaged and comm.is_main_process():
        for sentence in damaged:
            print(f"sohes train: trained without some labels: {sentence}", file=sys.stderr)
        sys.exit(EXIT_SKIPPED)


def evaluate(cfg: Any, resume: bool) -> None:
    """Evaluate MODEL.WEIGHTS, or the last checkpoint with ``resume``, on DATASETS.TEST; write evaluation.json.

    Exits with code 1 if TEST.EXPECTED_RESULTS are not met.
    """
    from detectron2.evaluation import verify_results
    from detectron2.utils import comm

    from ..engine.trainer import SOHESTrainer
    from ..evaluation.results import check_files, check_readable, write_evaluation
    from ..weights.checkpoint import SOHESCheckpointer

    check_files(cfg.DATASETS.TEST, cfg.TEST.MAX_UNREADABLE)
    model = SOHESTrainer.build_model(cfg)
    checkpointer = SOHESCheckpointer(model, cfg.OUTPUT_DIR, max_unmatched=0.0)
    weights = checkpointer.get_checkpoint_file() if resume and checkpointer.has_checkpoint() else cfg.MODEL.WEIGHTS
    extra = checkpointer.load(weights, checkpointables=[])
    results = SOHESTrainer.test(cfg, model)
    check_readable(cfg.DATASETS.TEST, results, cfg.TEST.MAX_UNREADABLE)
    iteration = extra.get("iteration")
    done = iteration + 1 if isinstance(iteration, int) else None
    write_evaluation(cfg.OUTPUT_DIR, cfg.DATASETS.TEST, results, done, weights)
    if comm.is_main_process():
        verify_results(cfg, results)


def train(args: argparse.Namespace) -> int:
    """Train or evaluate in the requested number of processes; returns the exit code."""
    choose_threads()
    from ..engine.training_command import frozen_config, run_processes

    cfg = frozen_config(args.config_file, args.opts, args.num_gpus)
    check_output(cfg.OUTPUT_DIR, folder=True, option="OUTPUT_DIR")
    return run_processes(run, args, cfg.MODEL.DEVICE)


main = make_main("sohes train", parse_arguments, train, when_stopped="continue with --resume")

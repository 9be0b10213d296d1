"""Train a small ViT on photos without labels: the backbone of all three phases if none can be downloaded.

    sohes pretrain --config-file configs/pretraining/vit_mini8_cpu.yaml --images photos/ more/
    sohes pretrain --config-file configs/pretraining/vit_small8.yaml --num-gpus 8 --images photos/
    sohes pretrain --config-file CONFIG.yaml --images photos/ --resume
    sohes pretrain --config-file CONFIG.yaml --images photos/ \\
        --teacher vit_base_patch8_224.dino --teacher-weights dino_vitb8.pth           # distill a large ViT
    sohes pretrain --config-file CONFIG.yaml --check-only color_texture \\
        --check-json segments.json --check-images photos/                             # dense check of other features

OUTPUT_DIR receives backbone_last.safetensors and backbone_best.safetensors (timm's key names), model_card.json,
checkpoints, log.txt, metrics.json and TensorBoard files. Use a backbone with EXPLORATION.FEATURES.NAME vit_file and
--weights FILE in phase 1, or with MODEL.VIT.WEIGHTS FILE for training. If the process is killed, the same command with
--resume continues with the same result as an uninterrupted training.

Exit code: 0 done, 1 training failed, 2 usage error, 130 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..structures.files import check_output
from .runner import add_config_file, add_process_options, check_processes, choose_threads, make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes pretrain")
    add = parser.add_argument
    add_config_file(parser, "config of the training", required=True)
    add("--images", nargs="+", metavar="DIR|LIST.txt|COCO.json", help="photos (PRETRAINING.IMAGES)")
    add("--check-json", metavar="COCO.json", help="segments for the dense check (PRETRAINING.CHECK.JSON)")
    add("--check-images", metavar="DIR", help="photos of the segments (PRETRAINING.CHECK.IMAGES)")
    add("--teacher", metavar="NAME", help="large timm ViT to distill (PRETRAINING.TEACHER.NAME)")
    add("--teacher-weights", metavar="NAME|URL|PATH", help="weights of the teacher (PRETRAINING.TEACHER.WEIGHTS)")
    add("--output", metavar="DIR", help="OUTPUT_DIR")
    add("--resume", action="store_true", help="continue from the last checkpoint of OUTPUT_DIR; start if there is none")
    add("--check-only", metavar="NAME", help="no training: dense check of EXPLORATION.FEATURES.NAME")
    add_process_options(parser, num_gpus=0)
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and values, at the end of the command after --")
    args = parser.parse_args(arguments)

    check_processes(parser, args)
    if args.teacher_weights and not args.teacher:
        parser.error("--teacher-weights needs --teacher, the name of the ViT")
    if args.check_only:
        args.num_gpus = min(args.num_gpus, 1)
    args.eval_only = False  # read by `training_command.set_up`
    return args


def build_cfg(args: argparse.Namespace) -> Any:
    """Build the frozen config: defaults, the file, flags, then KEY VALUE pairs.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, or an unreadable file.
    """
    from ..engine.training_command import frozen_config

    flags: list[str] = []
    for key, value in (
        ("PRETRAINING.IMAGES", args.images and repr(args.images)),
        ("PRETRAINING.CHECK.JSON", args.check_json),
        ("PRETRAINING.CHECK.IMAGES", args.check_images),
        ("PRETRAINING.METHOD", args.teacher and "distillation"),
        ("PRETRAINING.TEACHER.NAME", args.teacher),
        ("PRETRAINING.TEACHER.WEIGHTS", args.teacher_weights),
        ("EXPLORATION.FEATURES.NAME", args.check_only),
        ("OUTPUT_DIR", args.output),
    ):
        flags += [key, value] if value else []
    return frozen_config(args.config_file, [*flags, *args.opts], args.num_gpus)


def run(args: argparse.Namespace) -> None:
    """Train; runs in each process."""
    from ..engine.training_command import set_up
    from ..errors import ConfigError
    from ..pretraining.trainer import PretrainingTrainer

    cfg = build_cfg(args)
    set_up(cfg, args)
    try:
        trainer = PretrainingTrainer(cfg)
    except ImportError as error:  # lightly, an optional library, is missing
        raise ConfigError(str(error)) from error
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def check(args: argparse.Namespace) -> None:
    """Print the dense check of the features of ``cfg.EXPLORATION.FEATURES``."""
    from ..errors import ConfigError
    from ..exploration.features import build_feature_extractor
    from ..pretraining.dense_check import DenseCheck

    cfg = build_cfg(args)
    node = cfg.PRETRAINING.CHECK
    if not node.JSON:
        raise ConfigError("PRETRAINING.CHECK.JSON is empty; give --check-json and --check-images")
    score = DenseCheck(node.JSON, node.IMAGES, max_images=node.MAX_IMAGES).score(build_feature_extractor(cfg))
    for name, reason in score.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(f"AUC {score.auc:.4f}  near AUC {score.near_auc:.4f}  images {score.images}")


def train(args: argparse.Namespace) -> int:
    """Train, or check features; returns the exit code."""
    choose_threads()
    from ..engine.training_command import run_processes

    cfg = build_cfg(args)
    if not args.check_only:
        check_output(cfg.OUTPUT_DIR, folder=True, option="OUTPUT_DIR")
    return run_processes(check if args.check_only else run, args, cfg.MODEL.DEVICE)


main = make_main("sohes pretrain", parse_arguments, train, when_stopped="continue with --resume")

#!/usr/bin/env python
"""Train a small ViT on photos without labels: the backbone of all three phases where none can be downloaded.

    python tools/pretrain_backbone.py --config-file configs/pretraining/vit_mini8_cpu.yaml --images photos/ more/
    python tools/pretrain_backbone.py --config-file configs/pretraining/vit_small8.yaml --num-gpus 8 --images photos/
    python tools/pretrain_backbone.py --config-file CONFIG.yaml --images photos/ --resume
    python tools/pretrain_backbone.py --config-file CONFIG.yaml --images photos/ \\
        --teacher vit_base_patch8_224.dino --teacher-weights dino_vitb8.pth           # shrink a large ViT
    python tools/pretrain_backbone.py --config-file CONFIG.yaml --check-only color_texture \\
        --check-json segments.json --check-images photos/                             # how good are other features?

OUTPUT_DIR receives backbone_last.safetensors and backbone_best.safetensors (timm's names), model_card.json,
checkpoints, log.txt, metrics.json and TensorBoard's files. Use a backbone with EXPLORATION.FEATURES.NAME vit_file and
--weights FILE, or to train, MODEL.VIT.WEIGHTS FILE. After a kill the same command with --resume goes on as if nothing
had happened.

Exit code: 0 done, 1 training failed, 2 usage error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

EXIT_FAILED, EXIT_USAGE, EXIT_STOPPED = 1, 2, 130


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--config-file", required=True, metavar="YAML", help="configs/pretraining/ has some")
    add("--images", nargs="+", metavar="DIR|LIST.txt|COCO.json", help="photos (PRETRAINING.IMAGES)")
    add("--check-json", metavar="COCO.json", help="segments for the dense check (PRETRAINING.CHECK.JSON)")
    add("--check-images", metavar="DIR", help="their photos (PRETRAINING.CHECK.IMAGES)")
    add("--teacher", metavar="NAME", help="a large ViT of timm to learn the features of (PRETRAINING.TEACHER.NAME)")
    add("--teacher-weights", metavar="NAME|URL|PATH", help="its weights (PRETRAINING.TEACHER.WEIGHTS)")
    add("--output", metavar="DIR", help="OUTPUT_DIR")
    add("--resume", action="store_true", help="go on with the last checkpoint of the output, or begin")
    add("--check-only", metavar="NAME", help="train nothing: dense check of EXPLORATION.FEATURES.NAME")
    add("--num-gpus", type=int, default=0, metavar="N", help="0: the CPU (default); without GPUs, N processes on it")
    add("--num-machines", type=int, default=1, metavar="N")
    add("--machine-rank", type=int, default=0, metavar="I")
    add("--dist-url", default="auto", metavar="tcp://HOST:PORT", help="of machine 0")
    add("opts", nargs="*", metavar="KEY VALUE", help="config keys and values, at the end of the command after --")
    args = parser.parse_args(arguments)
    if args.num_gpus < 0 or args.num_machines < 1 or not 0 <= args.machine_rank < args.num_machines:
        parser.error("--num-gpus counts from 0, --num-machines from 1, and --machine-rank is below --num-machines")
    if args.teacher_weights and not args.teacher:
        parser.error("--teacher-weights needs --teacher, the name of the ViT that they are of")
    args.eval_only = False  # read by Detectron2's default_setup
    return args


def build_cfg(args: argparse.Namespace) -> Any:
    """The frozen config: defaults, the file, flags, then KEY VALUE pairs.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, a file that cannot be read.
    """
    import torch

    from sohes_d2.engine.config_file import load_config

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
    cfg = load_config(args.config_file, [*flags, *args.opts])
    if cfg.MODEL.DEVICE.startswith("cuda") and (args.num_gpus == 0 or not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def run(args: argparse.Namespace) -> None:
    """Train, in one of the processes."""
    from sohes_d2.pretraining.trainer import PretrainingTrainer
    from detectron2.engine import default_setup
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    cfg = build_cfg(args)
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sohes_d2", abbrev_name="sohes_d2")
    trainer = PretrainingTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def check(args: argparse.Namespace) -> None:
    """Print the dense check of the features of ``cfg.EXPLORATION.FEATURES``."""
    from sohes_d2.engine.config_file import ConfigError
    from sohes_d2.exploration.features import build_feature_extractor
    from sohes_d2.pretraining.dense_check import DenseCheck

    cfg = build_cfg(args)
    node = cfg.PRETRAINING.CHECK
    if not node.JSON:
        raise ConfigError("PRETRAINING.CHECK.JSON is empty; give --check-json and --check-images")
    score = DenseCheck(node.JSON, node.IMAGES, max_images=node.MAX_IMAGES).score(build_feature_extractor(cfg))
    for name, reason in score.skipped.items():
        print(f"skipped {name}: {reason}", file=sys.stderr)
    print(f"AUC {score.auc:.4f}  near AUC {score.near_auc:.4f}  images {score.images}")


def work(args: argparse.Namespace) -> None:
    """`run` or `check`, with a line instead of a traceback where the user can mend it; exits with a code then."""
    from sohes_d2.data.sources import SourceError
    from sohes_d2.data.training_stream import NothingUsableError
    from sohes_d2.engine.checkpoint import CheckpointError
    from sohes_d2.engine.config_file import ConfigError
    from sohes_d2.evaluation.errors import EvaluationError
    from sohes_d2.weights import WeightsError

    try:
        (check if args.check_only else run)(args)
    except (ConfigError, SourceError, CheckpointError, EvaluationError, WeightsError, ImportError) as error:
        print(f"pretrain_backbone: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except (FloatingPointError, NothingUsableError) as error:
        print(f"pretrain_backbone: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(arguments)

    import sohes_d2  # noqa: F401  (before Detectron2, which it mends)
    import torch
    from torch.multiprocessing import ProcessExitedException

    from sohes_d2.engine.launch import launch

    processes = 1 if args.check_only else max(args.num_gpus, 1)
    use_gpus = args.num_gpus > 0 and torch.cuda.is_available()
    try:
        launch(work, processes, args.num_machines, args.machine_rank, args.dist_url, (args,), use_gpus=use_gpus)
    except ProcessExitedException as error:
        return error.exit_code
    except SystemExit as error:
        return error.code
    except KeyboardInterrupt:
        print("\npretrain_backbone: stopped; go on with --resume", file=sys.stderr)
        return EXIT_STOPPED
    return 0


if __name__ == "__main__":
    sys.exit(main())

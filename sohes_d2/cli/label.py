"""Phase 1: label photos with forests of entities (wholes, parts, subparts), without human labels.

    sohes label --images photos/ --output labels.json
    sohes label --images photos/ --output labels/ --shard 3/16      # one of 16 jobs

An output ending in .json is one COCO file; otherwise it is a folder of shards of at most 1,000 images, which the data
loader reads directly and sohes merge joins. errors.json (skipped files with reasons), summary.json and an .index.npz,
which lets the data loader open the labels without reading them, are written beside the labels. If the process is
killed, the same command with --resume gives the same bytes as an uninterrupted run.

By default every mask is written, for training. --entities N writes a selection for viewing: the N entities that explain
a photo best, and their parts, without near-duplicates.

Image ids are 1 + position in the sorted folder or in the list, or those of the COCO file; annotation ids are
image_id * 10000 + k. Neither depends on workers, shards or resume.

Exit code: 0 all images labeled, 3 some skipped (errors.json), 2 usage error, 1 failed, 130 stopped by Ctrl-C
(after the last two, continue with --resume).
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

# Results on the CPU must not depend on the number of cores. numpy's BLAS reads this variable when it is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from ..structures.files import check_output  # noqa: E402
from .runner import (  # noqa: E402
    add_config_file,
    add_config_options,
    add_selection_options,
    available_cores,
    make_main,
    tool_parser,
)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes label")
    add = parser.add_argument
    add(
        "--images",
        required=True,
        metavar="DIR|FILE|LIST.txt|COCO.json",
        help="folder (with sub-folders), a single image, list of paths, or COCO file",
    )
    add(
        "--image-root",
        metavar="DIR",
        help="base folder of paths in a list or COCO file (default: the folder of the file)",
    )
    add("--output", metavar="OUT", help="one file (ends in .json) or a folder of shards")
    add_config_file(parser, "config with keys under EXPLORATION")
    add("--weights", metavar="NAME|URL|PATH", help="weights of the feature extractor (EXPLORATION.FEATURES.WEIGHTS)")
    add("--refiner", metavar="NAME", help="none, guided, crf or cascadepsp (EXPLORATION.REFINEMENT.NAME)")
    add("--device", help="cuda, cuda:1, cpu (default: cuda if there is one, else cpu)")
    add("--workers", type=int, metavar="N", help="worker processes, 0: none (default: one per core)")
    add(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="images of equal size per batch on a device (default: 8)",
    )
    add(
        "--shard",
        default="0/1",
        metavar="I/N",
        help="run job I of N, I from 0; all jobs share the folder OUT (default: 0/1)",
    )
    add("--images-per-shard", type=int, default=1000, metavar="N", help="upper limit (default: 1000)")
    add("--resume", action="store_true", help="continue an existing output, or start")
    add("--overwrite", action="store_true", help="replace an existing output")
    add(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: on a Ray cluster (pip install 'sohes_d2[ray]')",
    )
    add(
        "--ray-address",
        metavar="ADDRESS",
        help="address of a running cluster: auto, host:6379, ray://host:10001 (default: start one here)",
    )
    add_selection_options(parser, entities=0)
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if not args.output:
        parser.error("--output is missing: a file ending in .json, or a folder")
    job, slash, jobs = args.shard.partition("/")
    if not (slash and job.isdigit() and jobs.isdigit()):
        parser.error(f"--shard is I/N, for example 0/4 to 3/4; got {args.shard!r}")
    args.job, args.jobs = int(job), int(jobs)
    return args


def build_cfg(args: argparse.Namespace):
    """Build the config: defaults, then the file, then flags, then KEY VALUE pairs.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, an unreadable file, or an unavailable device.
    """
    from ..config.load import load_config
    from ..devices import choose_device

    flags: list[str] = []
    for key, value in (
        ("EXPLORATION.FEATURES.WEIGHTS", args.weights),
        ("EXPLORATION.REFINEMENT.NAME", args.refiner),
    ):
        flags += [key, value] if value is not None else []
    cfg = load_config(args.config_file or "", [*flags, *args.opts])
    wanted = cfg.MODEL.DEVICE if "MODEL.DEVICE" in args.opts[::2] else args.device
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, wanted)
    cfg.freeze()
    return cfg


def label(args: argparse.Namespace) -> int:
    """Label the images; returns the exit code."""
    # imported after parsing: these take seconds
    from ..data.sources import read_image_list
    from ..labeling.run import LabelingOptions, run_labeling

    options = LabelingOptions(
        workers=_default_workers() if args.workers is None else args.workers,
        batch_size=args.batch_size,
        job=args.job,
        jobs=args.jobs,
        images_per_shard=args.images_per_shard,
        resume=args.resume,
        overwrite=args.overwrite,
        engine=args.engine,
        ray_address=args.ray_address,
    )
    check_output(args.output, folder=not args.output.lower().endswith(".json"))
    images = read_image_list(args.images, args.image_root)
    cfg = build_cfg(args)
    from ..labeling.steps import LabelerFactory
    from ..structures.entity import Selection

    selection = Selection(args.entities, args.min_score, args.max_depth)

    outcome = run_labeling(images, args.output, LabelerFactory(cfg, selection), options)
    summary = outcome.summary
    done = summary.get("this_run", {}).get("images")
    speed = f", {summary['this_run']['wall_seconds'] / done:.1f} s per image" if done else ""
    print(f"{summary['images']} images, {summary['masks']} masks{speed} -> {outcome.output}")
    print("masks by depth: " + ", ".join(f"{depth}: {count}" for depth, count in summary["depth_histogram"].items()))
    if outcome.skipped:
        print(f"{len(outcome.skipped)} images skipped, see errors.json", file=sys.stderr)
    return outcome.exit_code


main = make_main(
    "sohes label",
    parse_arguments,
    label,
    log_level=logging.INFO,
    when_stopped="continue with --resume",
    when_failed="Finished work is kept; continue with --resume.",
)


def _default_workers() -> int:
    cores = available_cores()
    return cores if cores > 1 else 0

"""Show the entities of photos: wholes, parts and subparts.

    sohes demo --images photos/ --output output/demo                              # phase 1, no weights
    sohes demo --images a.jpg 'more/*.png' --output output/demo --weights output/instruction
    sohes demo --images photos/ --output output/demo --config-file configs/sohes_vits16_instruction.yaml \\
        --weights model.safetensors --min-score 0.3 --max-depth 2

With --weights, a trained model is used: a folder with config.yaml and weights, such as OUTPUT_DIR of a training, or a
file, with its config from --config-file or from config.yaml beside it. Otherwise phase 1 clusters each photo; its
settings are the keys under EXPLORATION (EXPLORATION.FEATURES.NAME joint needs no download).

OUTPUT receives report.html, a page to browse the forests; labels.json, the masks as COCO json; and pictures/ with, for
each photo, NAME_forest.jpg (all levels and the tree), NAME_depth0.jpg (wholes), NAME_depth1.jpg (parts), ...,
NAME_strips.jpg (from whole to part), NAME_tree.jpg.

Exit code: 0 all photos shown, 3 some skipped (listed, and in labels.json), 2 usage error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any

from ..structures.files import check_output
from .runner import (
    EXIT_SKIPPED,
    add_config_file,
    add_config_options,
    add_picture_options,
    add_selection_options,
    at_least,
    make_main,
    printable,
    tool_parser,
)

# Phase 1 also finds regions of nearly the whole photo, which would hide all others in a picture of wholes.
PHASE_ONE_MAX_AREA = 0.5


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes demo")
    add = parser.add_argument
    what = "photos, folders (with sub-folders), globs"
    add("--images", "--input", required=True, nargs="+", metavar="FILE|DIR|GLOB", help=what)
    add("--output", required=True, metavar="DIR", help="output folder; created if missing, files in it are replaced")
    add_config_file(parser, "config of the model or of phase 1")
    add("--weights", metavar="FILE|DIR|shipped:NAME", help="weights of a trained model (default: none, show phase 1)")
    add("--device", help="cuda, cuda:1, mps, cpu (default: that of the config, or cpu if not available)")
    add("--batch-size", type=at_least(1), default=1, metavar="N", help="photos per batch of the model (default: 1)")
    add_selection_options(parser, entities=20)
    add_picture_options(parser)
    what = f"draw no masks above this share of a photo (default: {PHASE_ONE_MAX_AREA} with masks of phase 1, else 1)"
    add("--max-area", type=float, metavar="SHARE", help=what)
    add_config_options(parser)
    args = parser.parse_args(arguments)
    if args.max_area is not None and not 0 < args.max_area <= 1:
        parser.error(f"--max-area must be over 0 and at most 1, got {args.max_area}")
    return args


def build_finder(args: argparse.Namespace) -> tuple[Any, dict[str, Any], str]:
    """Return a function from photos to forests, the ``info`` of the json, and a description for messages.

    Raises:
        ConfigError, WeightsError, ValueError, ImportError: the model cannot be built.
    """
    from .. import __version__, compat
    from ..config.load import load_config
    from ..devices import choose_device
    from ..errors import ConfigError
    from ..exploration.features import build_feature_extractor
    from ..exploration.labeler import PseudoLabeler
    from ..structures.images import set_max_image_pixels
    from ..weights import PREFIX, local_path

    version = {"description": "Forests of entities, made by sohes demo", "version": __version__}
    if args.weights or "MODEL.WEIGHTS" in args.opts[::2]:
        compat.require()
        from ..inference.predictor import SOHESPredictor, load_model_folder

        config, weights = args.config_file, local_path(args.weights or "")
        if os.path.isdir(weights):
            config = config or os.path.join(weights, "config.yaml")
            weights = load_model_folder(weights)[1]
        elif weights and not config:
            config = os.path.join(os.path.dirname(weights), "config.yaml")
        if not config or not (args.config_file or os.path.isfile(config)):
            raise ConfigError("--config-file is missing: weights alone do not determine the model")
        predictor = SOHESPredictor(load_config(config, args.opts), weights=weights or None, device=args.device)
        shipped = (args.weights or "").startswith(PREFIX)
        name = args.weights if shipped else os.path.basename(predictor.cfg.MODEL.WEIGHTS)
        model = predictor.cfg.MODEL.META_ARCHITECTURE
        info = {**version, "model": model, "weights": name, "masks_from": predictor.cfg.TEST.MASKS_FROM}
        return (
            lambda images: predictor.predict(images, args.batch_size),
            info,
            f"the model {name} on {predictor.device}",
        )
    cfg = load_config(args.config_file or "", args.opts)
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, args.device)
    set_max_image_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
    extractor = build_feature_extractor(cfg)
    labeler = PseudoLabeler.from_cfg(cfg, extractor)
    words = f"phase 1 with {extractor.name} features (no --weights of a trained model)"
    info = {**version, "model": "phase 1", **labeler.describe()}
    return lambda images: [labeler.generate(image) for image in images], info, words


def show(args: argparse.Namespace) -> int:
    """Find the forests and write pictures, json and page; returns the exit code."""
    # imported after parsing: these take seconds
    from ..data.sources import read_inputs
    from ..inference.gallery import DemoOptions, run_demo

    check_output(args.output, folder=True)
    images = read_inputs(args.images)
    find_forests, info, words = build_finder(args)
    print(f"{len(images)} photos, by {words}", flush=True)
    phase_one = info["model"] == "phase 1"
    has_trees = info.get("masks_from") != "queries"  # true for phase 1, which has no such key
    max_area = args.max_area if args.max_area is not None else PHASE_ONE_MAX_AREA if has_trees else 1.0
    options = DemoOptions(
        score_threshold=args.min_score,
        max_depth=args.max_depth,
        max_area=max_area,
        max_masks=args.max_masks,
        entities=args.entities,
        width=args.width,
        batch_size=args.batch_size,
    )
    title = "Forests of phase 1" if phase_one else f"Forests of {info['weights']}"
    report = run_demo(images, find_forests, args.output, options, info, title, _say)
    masks = sum(map(sum, report.forests.values()))
    print(f"{len(report.forests)} photos, {masks} masks: open {report.page}; masks in {report.labels}")
    if not masks and report.best_score:
        hint = f"the best is {report.best_score:.3f}; lower --min-score"
        print(f"no mask has a score of {args.min_score} or more: {hint}", file=sys.stderr)
    if report.skipped:
        print(f"{len(report.skipped)} photos skipped, reasons above", file=sys.stderr)
    return EXIT_SKIPPED if report.skipped else 0


main = make_main("sohes demo", parse_arguments, show, when_stopped="labels.json and report.html were not written")


def _say(file_name: str, report: Any) -> None:
    if file_name in report.forests:
        counts: list[int] = [*report.forests[file_name], 0, 0]
        wholes, parts, *deeper = counts
        words = f"{wholes + parts + sum(deeper)} masks ({wholes} wholes, {parts} parts, {sum(deeper)} subparts)"
        print(f"{report.pictures[file_name][0]}: {words}", flush=True)
    else:
        print(f"skipped {printable(file_name)}: {report.skipped[-1]['reason']}", file=sys.stderr, flush=True)

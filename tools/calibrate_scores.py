#!/usr/bin/env python
"""Calibrate scores, without labels, to the fraction of masks that are found again in a transformed photo.

    python tools/calibrate_scores.py --images photos/ --photos 40
    python tools/calibrate_scores.py --images photos/ --config-file configs/exploration/color_texture.yaml
    python tools/calibrate_scores.py --images photos/ --model shipped:sohes_mini8

Every photo is labeled twice: unchanged, and mirrored, recoloured (brightness, contrast, saturation by up to 20 %) and
downsized to three quarters of its sides. A mask is found again if the second labels have one with IoU of at least 0.75.

For phase 1 the share of such masks is fitted as a logistic function of the logarithm of the raw score above a floor, by
maximum likelihood: EXPLORATION.SCORE.FLOOR, MIDPOINT and SLOPE. For a trained model it is fitted by isotonic
regression: TEST.SCORE_CALIBRATION. Prints the keys, and a table of predicted and observed shares; with --check only the
table, for the scores of the config.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from sohes_d2.cli.runner import make_main, tool_parser  # noqa: E402
from sohes_d2.errors import InputError  # noqa: E402
from sohes_d2.structures.score_calibration import calibrated  # noqa: E402

Find = Callable[[np.ndarray], Any]  # from an (H, W, 3) photo to its Forest

RETURNED_IOU = 0.75
SHRINK = 0.75
JITTER = 0.2
GROUPS = 12  # groups of masks by score, to which a model's calibration is fitted
LEAST_STEP = 0.005  # smallest difference in raw score between knots
TILT = 0.02  # weight of the raw score in the calibration, to make it strictly increasing


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--images", required=True, nargs="+", metavar="DIR", help="folders of photos")
    add("--photos", type=int, default=40, metavar="N", help="photos per folder, spread over it (default: 40)")
    add("--first", type=int, default=0, metavar="K", help="number of first photos to skip (default: 0)")
    add("--config-file", metavar="YAML", help="config of phase 1 (default: configs/exploration/joint.yaml)")
    add("--model", metavar="NAME", help="a trained model instead of phase 1: shipped:NAME or a folder")
    add("--check", action="store_true", help="no fit: check the scores of the config")
    return parser.parse_args(arguments)


def calibrate(args: argparse.Namespace) -> int:
    """Label, fit and print the numbers; returns the exit code."""
    import sohes_d2  # noqa: F401 (before Detectron2, which it patches)

    find, tail = model(args) if args.model else phase_one(args)
    scores, returned, count = observe(find, photos_of(args))
    print(f"{count} photos, {len(scores)} masks, {returned.mean():.3f} of them found again")
    predicted = scores
    if not args.check and args.model:
        knots = isotonic_knots(scores, returned)
        print(f"TEST.SCORE_CALIBRATION {knots}")
        predicted = calibrated(scores, knots)
    elif not args.check:
        raw = scores / np.maximum(1 - scores, 1e-9)
        floor, midpoint, slope = fit(raw, returned, tail)
        for key, value in (("FLOOR", floor), ("MIDPOINT", midpoint), ("SLOPE", slope)):
            print(f"EXPLORATION.SCORE.{key} {value:.4f}")
        predicted = floor * raw / (raw + tail) + (1 - floor) * raw**slope / (raw**slope + midpoint**slope)
    for low in np.arange(0, 1, 0.1):
        some = (low <= predicted) & (predicted < low + 0.1)
        if some.any():
            shares = f"predicted {predicted[some].mean():.3f}, observed {returned[some].mean():.3f}"
            print(f"score {low:.1f} to {low + 0.1:.1f}: {some.sum():6d} masks, {shares}")
    print(f"mean difference of the tenths, weighted by masks: {calibration_error(predicted, returned):.3f}")
    return 0


def phase_one(args: argparse.Namespace) -> tuple[Find, float]:
    """Function from a photo to its labels, with scores raw / (raw + 1) unless --check is given; and SCORE.TAIL."""
    from sohes_d2 import add_sohes_config
    from sohes_d2.exploration.labeler import PseudoLabeler

    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.merge_from_file(args.config_file or str(Path(__file__).parents[1] / "configs/exploration/joint.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    node = cfg.EXPLORATION.SCORE
    tail = node.TAIL
    if not args.check:
        node.FLOOR, node.MIDPOINT, node.SLOPE, node.REDUNDANCY = 0.0, 1.0, 1.0, 0.0
    return PseudoLabeler.from_cfg(cfg).generate, tail


def model(args: argparse.Namespace) -> tuple[Find, float]:
    """Function from a photo to a model's entities, with raw scores unless --check is given; and 0."""
    from sohes_d2.inference.predictor import SOHESPredictor, load_model_folder

    cfg, weights = load_model_folder(args.model)
    cfg.defrost()
    if not args.check:
        cfg.TEST.SCORE_CALIBRATION, cfg.TEST.MIN_SCORE = [], 0.0
    cfg.MODEL.WEIGHTS = weights
    return SOHESPredictor(cfg, device="cpu"), 0.0


def photos_of(args: argparse.Namespace) -> list[Path]:
    """The photos of the command line.

    Raises:
        InputError: a folder has none.
    """
    chosen = []
    for folder in args.images:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        paths = paths[args.first :]
        paths = paths[:: max(1, len(paths) // args.photos)][: args.photos]
        if not paths:
            raise InputError(f"{folder}: no .jpg or .png in this folder")
        chosen += paths
    return chosen


def observe(find: Find, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, int]:
    """(M,) scores of all masks of the photos, (M,) bool whether they are found again, and the number of photos."""
    from sohes_d2.structures.images import read_image

    looks = [look_twice(find, read_image(str(path)), np.random.default_rng(k)) for k, path in enumerate(paths)]
    scores, returned = (np.concatenate(values) for values in zip(*looks))
    return scores.astype(np.float64), returned, len(looks)


main = make_main("calibrate_scores", parse_arguments, calibrate)


def look_twice(find: Find, image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(M,) scores of an (H, W, 3) photo's masks, and (M,) bool whether they are found again."""
    import cv2

    from sohes_d2.structures.masks import decode_mask, encode_masks, iou_matrix

    height, width = image.shape[:2]
    first = find(image)
    second = find(transformed(image, generator))
    size = (width, height)
    back = [
        cv2.resize(decode_mask(mask).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[:, ::-1].astype(bool)
        for mask in second.masks
    ]
    if not len(first) or not back:
        return first.scores, np.zeros(len(first), bool)
    return first.scores, iou_matrix(first.masks, encode_masks(back)).max(axis=1) >= RETURNED_IOU


def transformed(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirror, recolour and downsize a photo."""
    import cv2

    size = (max(1, round(image.shape[1] * SHRINK)), max(1, round(image.shape[0] * SHRINK)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:, ::-1].astype(np.float32)
    brightness, contrast, saturation = generator.uniform(1 - JITTER, 1 + JITTER, 3).astype(np.float32)
    grey = small.mean(axis=2, keepdims=True)
    colored = grey + saturation * (small - grey)
    mean = colored.mean()
    return np.clip(np.rint(brightness * (mean + contrast * (colored - mean))), 0, 255).astype(np.uint8)


def isotonic_knots(scores: np.ndarray, returned: np.ndarray) -> list[list[float]]:
    """Fit the share of masks found again by raw score, as knots of TEST.SCORE_CALIBRATION.

    Isotonic regression over groups of equal size, with linear interpolation; made strictly increasing, so that the
    order of masks is preserved.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(scores, kind="stable")
    groups = [group for group in np.array_split(order, GROUPS) if len(group)]
    raw = np.array([scores[group].mean() for group in groups])
    found = isotonic_regression([returned[group].mean() for group in groups], weights=[len(g) for g in groups])
    share = (1 - TILT) * found.x + TILT * raw
    ends = np.union1d(found.blocks[:-1], found.blocks[1:] - 1)  # ends of runs of groups with the same fraction
    knots = [[0.0, 0.0]]
    for x, y in zip(raw[ends], share[ends]):
        if knots[-1][0] + LEAST_STEP < x < 1 - LEAST_STEP:
            knots.append([round(float(x), 5), round(float(y), 5)])
    return [*knots, [1.0, round(float((1 - TILT) * found.x[-1] + TILT), 5)]]


def calibration_error(scores: np.ndarray, returned: np.ndarray) -> float:
    """Mean over tenths of the score, weighted by masks, of the difference between mean score and found fraction."""
    tenth = np.minimum((scores * 10).astype(int), 9)
    sums = [np.bincount(tenth, weights=values, minlength=10) for values in (scores, returned.astype(np.float64))]
    return float(np.abs(sums[0] - sums[1]).sum() / len(scores))


def fit(raw: np.ndarray, returned: np.ndarray, tail: float) -> tuple[float, float, float]:
    """(floor, midpoint, slope) of the share of masks found again, by maximum likelihood."""
    from scipy.optimize import minimize
    from scipy.special import expit

    x = np.log(np.maximum(raw, 1e-9))
    y = returned.astype(np.float64)

    def loss(parameters: np.ndarray) -> float:
        floor, middle, slope = expit(parameters[0]), parameters[1], np.exp(parameters[2])
        share = np.clip(floor * raw / (raw + tail) + (1 - floor) * expit(slope * (x - middle)), 1e-9, 1 - 1e-9)
        return -float(np.mean(y * np.log(share) + (1 - y) * np.log(1 - share)))

    start = np.array([-2.0, float(np.median(x)), 1.0])
    floor, middle, slope = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 2000}).x
    return float(expit(floor)), float(np.exp(middle)), float(np.exp(slope))


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Fit EXPLORATION.SCORE.FLOOR, MIDPOINT and SLOPE without labels: which masks come back in a changed photo?

    python tools/calibrate_scores.py --images photos/ --photos 40
    python tools/calibrate_scores.py --images photos/ --config-file configs/exploration/color_texture.yaml

Every photo is labeled twice: as it is, and mirrored, recoloured (brightness, contrast and saturation by up to 20 %) and
reduced to three quarters of its sides. A mask comes back if the second labels have one of an IoU of at least 0.75. The
share of masks that do is fitted as a logistic function of the logarithm of the raw score above a floor, by maximum
likelihood. Prints the keys, and a table of predicted and observed shares.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from sohes_d2.cli.runner import run_tool, tool_parser  # noqa: E402
from sohes_d2.errors import InputError  # noqa: E402

RETURNED_IOU = 0.75
SHRINK = 0.75
JITTER = 0.2


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; exits with code 2 where it is wrong."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of photos")
    add("--photos", type=int, default=40, metavar="N", help="how many, spread over the folder (default: 40)")
    add("--config-file", metavar="YAML", help="default: configs/exploration/joint.yaml")
    return parser.parse_args(arguments)


def calibrate(args: argparse.Namespace) -> int:
    """Label, fit, and print the numbers; returns the exit code."""
    import sohes_d2  # before Detectron2, which it mends
    from sohes_d2.exploration.labeler import PseudoLabeler
    from sohes_d2.structures.images import read_image

    from detectron2.config import get_cfg

    cfg = get_cfg()
    sohes_d2.add_sohes_config(cfg)
    cfg.merge_from_file(args.config_file or str(Path(__file__).parents[1] / "configs/exploration/joint.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    node = cfg.EXPLORATION.SCORE
    tail = node.TAIL
    node.FLOOR, node.MIDPOINT, node.SLOPE, node.REDUNDANCY = 0.0, 1.0, 1.0, 0.0  # the score is raw / (raw + 1) then
    labeler = PseudoLabeler.from_cfg(cfg)
    paths = sorted(path for path in Path(args.images).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = paths[:: max(1, len(paths) // args.photos)][: args.photos]
    if not paths:
        raise InputError(f"{args.images}: no .jpg or .png in this folder")
    raw, returned = [], []
    for k, path in enumerate(paths):
        scores, came_back = look_twice(labeler, read_image(str(path)), np.random.default_rng(k))
        raw.append(scores / np.maximum(1 - scores, 1e-9))
        returned.append(came_back)
    raw, returned = np.concatenate(raw), np.concatenate(returned)
    floor, midpoint, slope = fit(raw, returned, tail)
    print(f"{len(paths)} photos, {len(raw)} masks, {returned.mean():.3f} of them come back")
    for key, value in (("FLOOR", floor), ("MIDPOINT", midpoint), ("SLOPE", slope)):
        print(f"EXPLORATION.SCORE.{key} {value:.4f}")
    predicted = floor * raw / (raw + tail) + (1 - floor) * raw**slope / (raw**slope + midpoint**slope)
    for low in np.arange(0, 1, 0.1):
        some = (low <= predicted) & (predicted < low + 0.1)
        if some.any():
            shares = f"predicted {predicted[some].mean():.3f}, observed {returned[some].mean():.3f}"
            print(f"score {low:.1f} to {low + 0.1:.1f}: {some.sum():6d} masks, {shares}")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_tool("calibrate_scores", parse_arguments, calibrate, arguments)


def look_twice(labeler, image: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(M,) scores of an (H, W, 3) photo's masks, and (M,) bool whether they come back."""
    import cv2

    from sohes_d2.structures.masks import decode_mask, encode_masks, iou_matrix

    height, width = image.shape[:2]
    first = labeler.generate(image)
    second = labeler.generate(transformed(image, generator))
    size = (width, height)
    back = [
        cv2.resize(decode_mask(mask).astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)[:, ::-1].astype(bool)
        for mask in second.masks
    ]
    if not len(first) or not back:
        return first.scores, np.zeros(len(first), bool)
    return first.scores, iou_matrix(first.masks, encode_masks(back)).max(axis=1) >= RETURNED_IOU


def transformed(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The photo mirrored, recoloured and reduced."""
    import cv2

    size = (max(1, round(image.shape[1] * SHRINK)), max(1, round(image.shape[0] * SHRINK)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)[:, ::-1].astype(np.float32)
    brightness, contrast, saturation = generator.uniform(1 - JITTER, 1 + JITTER, 3).astype(np.float32)
    grey = small.mean(axis=2, keepdims=True)
    colored = grey + saturation * (small - grey)
    mean = colored.mean()
    return np.clip(np.rint(brightness * (mean + contrast * (colored - mean))), 0, 255).astype(np.uint8)


def fit(raw: np.ndarray, returned: np.ndarray, tail: float) -> tuple[float, float, float]:
    """(floor, midpoint, slope) of the share that comes back, by maximum likelihood."""
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

#!/usr/bin/env python
"""Compare faster-coco-eval with pycocotools: speed and equality of the results.

    python tools/benchmarks/benchmark_evaluation.py                       # 100 images x 700 detections
    python tools/benchmarks/benchmark_evaluation.py --images 10 --iou-type bbox

Uses generated images of nested blobs; detections are noisy copies of the true masks and random ones, with some equal
scores. Both backends evaluate the same records, one after the other. Prints ``speedup`` and whether the metrics are
``equal`` (to 1e-9 percent). pycocotools uses one core, faster-coco-eval up to 8 threads for mask overlaps.

Exit code: 0 equal, 1 not equal, 2 faster-coco-eval is not installed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

import numpy as np

from sohes_d2.cli.runner import make_main, tool_parser
from sohes_d2.evaluation.detection_metrics import FAST, REFERENCE, evaluate_detections, resolve_backend
from sohes_d2.structures.masks import encode_masks, mask_areas, mask_boxes

HEIGHT, WIDTH = 480, 640


def generate(images: int, truths: int, detections: int, seed: int = 0) -> tuple[list[dict], list[dict], list[dict]]:
    """Generate COCO images, true annotations and detections, deterministically.

    Args:
        images, truths, detections: number of images, and of masks in each.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]

    def ellipse(shape: np.ndarray) -> np.ndarray:
        y, x, a, b = shape
        return ((rows - y) / a) ** 2 + ((columns - x) / b) ** 2 <= 1

    def random_shapes(n: int) -> np.ndarray:
        radii = np.exp(rng.uniform(np.log(6), np.log(160), (n, 2)))  # small and large ones equally often
        return np.concatenate([rng.uniform(0, HEIGHT, (n, 1)), rng.uniform(0, WIDTH, (n, 1)), radii], axis=1)

    coco_images, true_annotations, predictions = [], [], []
    for image_id in range(1, images + 1):
        coco_images.append({"id": image_id, "height": HEIGHT, "width": WIDTH})
        true_shapes = random_shapes(truths)
        copies = true_shapes[rng.integers(0, truths, detections // 2)]
        copies = copies + rng.normal(0, 0.12, copies.shape) * copies[:, 2:].mean(axis=1, keepdims=True)
        copies[:, 2:] = np.abs(copies[:, 2:]) + 1
        guesses = np.concatenate([copies, random_shapes(detections - len(copies))])
        for shapes, target in ((true_shapes, true_annotations), (guesses, predictions)):
            masks = encode_masks(ellipse(shape) for shape in shapes)
            for mask, area, box in zip(masks, mask_areas(masks).tolist(), mask_boxes(masks).tolist()):
                target.append(
                    {
                        "image_id": image_id,
                        "segmentation": mask,
                        "area": area,
                        "bbox": box,
                        "score": round(float(rng.uniform()), 2),
                        "iscrowd": int(target is true_annotations and rng.uniform() < 0.02),
                    }
                )
    return coco_images, true_annotations, predictions


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    parser.add_argument("--images", type=int, default=100, metavar="N")
    parser.add_argument("--truths", type=int, default=60, metavar="N", help="true masks per image (default: 60)")
    parser.add_argument("--detections", type=int, default=700, metavar="N", help="per image (default: 700)")
    parser.add_argument("--iou-type", choices=("segm", "bbox"), default="segm")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    resolve_backend(FAST)

    data = generate(args.images, args.truths, args.detections)
    print(
        f"{args.images} images, {args.truths} true masks and {args.detections} detections each, {args.iou_type}; "
        f"{os.cpu_count()} cores",
        flush=True,
    )
    # the first call loads the libraries
    small = generate(1, 2, 2)
    results, seconds = {}, {}
    for backend in (FAST, REFERENCE):
        evaluate_detections(*small, iou_type=args.iou_type, backend=backend)
        start, start_cpu = time.perf_counter(), time.process_time()
        results[backend] = evaluate_detections(*data, iou_type=args.iou_type, backend=backend)
        seconds[backend] = time.perf_counter() - start
        print(f"{backend:17} {seconds[backend]:8.2f} s, {time.process_time() - start_cpu:8.2f} s of cores", flush=True)
    worst = max(
        abs(results[FAST][name] - value) if value == value else float(results[FAST][name] == results[FAST][name])
        for name, value in results[REFERENCE].items()
    )
    equal = worst <= 1e-9
    print(f"AR@1000 {results[FAST]['AR@1000']:.3f}, AP {results[FAST]['AP']:.3f}; greatest difference {worst:.1e}")
    print(f"speedup {seconds[REFERENCE] / seconds[FAST]:.1f}, equal {equal}")
    return 0 if equal else 1


main = make_main("benchmark_evaluation", parse_arguments, run)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Measure selections and collapsed forests: recall of N entities, remaining overlap, depth, only children, parents.

    python tools/benchmarks/benchmark_entities.py --gt entities_val.json --pred labels.json --entities 10 20

Compares the N entities of `Forest.select` with the N best masks by score, and the forests as found with the displayed
ones (`Forest.collapse`). --pred is a label file or the labels.json of sohes demo; only its images are used. If --gt has
parent_id, the F1 of parents and ancestors (IoU 0.5) is printed for both forests.

Exit code: 0 measured, 2 the files do not match or usage error.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sohes_d2.cli.runner import make_main, tool_parser
from sohes_d2.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from sohes_d2.structures.forest import Forest


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--gt", required=True, metavar="GT.json", help="ground truth, a COCO file")
    add("--pred", required=True, metavar="PRED.json", help="labels or predictions, a COCO file")
    add("--entities", nargs="+", type=int, default=[10, 20], metavar="N", help="sizes of selections (default: 10 20)")
    add("--output", metavar="FILE.json", help="write all numbers")
    args = parser.parse_args(arguments)
    if min(args.entities) < 1:
        parser.error(f"--entities must be at least 1, got {min(args.entities)}")
    return args


def overlap_left(forest: Forest, indices: Sequence[int] | np.ndarray) -> float:
    """Mean over masks of the largest overlap with another of them, as a share of the smaller one."""
    import numpy as np

    from sohes_d2.structures.masks import coverage_matrix

    masks, areas = [forest.masks[k] for k in indices], forest.areas[list(indices)]
    if len(masks) < 2:
        return 0.0
    shared = coverage_matrix(masks, masks) * areas[:, None] / np.minimum(areas[:, None], areas)
    np.fill_diagonal(shared, 0)
    return float(shared.max(axis=1).mean())


def shape_of(forests: Sequence[Forest]) -> dict[str, float]:
    """Means over forests: masks, wholes, depths, parents with one child, children that cover most of their parent."""
    import numpy as np

    masks = sum(len(forest) for forest in forests)
    parents = only = children = large = large_only = 0
    for forest in forests:
        inside = np.flatnonzero(forest.parents >= 0)
        counts = np.bincount(forest.parents[inside], minlength=len(forest))
        most = forest.areas[inside] > 0.8 * forest.areas[forest.parents[inside]]
        parents += np.count_nonzero(counts)
        only += np.count_nonzero(counts == 1)
        children += len(inside)
        large += np.count_nonzero(most)
        large_only += np.count_nonzero(most & (counts[forest.parents[inside]] == 1))
    return {
        "masks": masks / len(forests),
        "wholes": float(np.mean([len(forest.roots()) for forest in forests])),
        "deepest, median": float(np.median([forest.depths().max(initial=0) for forest in forests])),
        "mean depth": float(np.mean([forest.depths().mean() for forest in forests if len(forest)])),
        "parents with one child, %": 100 * only / max(1, parents),
        "children over 80 % of their parent, %": 100 * large / max(1, children),
        "only children over 80 %": int(large_only),
    }


def measure(args: argparse.Namespace) -> None:
    """Measure and print the numbers."""
    from sohes_d2.evaluation.detection_metrics import evaluate_detections
    from sohes_d2.evaluation.forest_metrics import ForestMetrics
    from sohes_d2.evaluation.ground_truth import GroundTruth, predicted_forest
    from sohes_d2.evaluation.predictions import read_predictions
    from sohes_d2.structures.files import write_json

    truth = GroundTruth.from_file(args.gt)
    predictions = read_predictions(args.pred, truth, "auto", True, ["segm"])
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in predictions.annotations:
        by_image[annotation["image_id"]].append(annotation)
    forests = {
        image_id: predicted_forest(by_image[image_id], truth.size(image_id), args.pred)[0]
        for image_id in truth.images
        if by_image[image_id]
    }
    if not forests:
        raise InputError(f"{args.pred} has no masks of the images of {args.gt}")

    images = [truth.images[image_id] for image_id in forests]
    records = [record for record in truth.records("segm") if record["image_id"] in forests]
    result: dict[str, Any] = {"images": len(images), "selection": {}, "forests": {}}
    for count in args.entities:
        for name in ("by score", "selected"):
            detections, overlaps = [], []
            for image_id, forest in forests.items():
                chosen = (-forest.scores).argsort(kind="stable")[:count]
                if name == "selected":
                    chosen = forest.selected_indices(count)
                overlaps.append(overlap_left(forest, chosen))
                detections += [
                    # all are used, so the values of scores do not matter
                    {"image_id": image_id, "score": 1 - rank / (count + 1), "segmentation": forest.masks[k]}
                    for rank, k in enumerate(chosen)
                ]
            recall = evaluate_detections(images, records, detections, "segm", [count])[f"AR@{count}"]
            result["selection"][f"{name} {count}"] = row = {
                "AR": recall,
                "masks": len(detections) / len(forests),
                "overlap": sum(overlaps) / len(overlaps),
            }
            words = f"{row['masks']:.1f} masks, overlap left {row['overlap']:.2f}"
            print(f"AR@{count} {name:9s} {recall:5.1f}   {words}", flush=True)
    collapsed = {image_id: forest.collapse() for image_id, forest in forests.items()}
    for name, some in (("as found", forests), ("collapsed", collapsed)):
        row = shape_of(list(some.values()))
        if truth.has_hierarchy:
            metrics = ForestMetrics()
            for image_id, true_forest in truth.forests().items():
                if image_id in some:
                    metrics.add(true_forest, some[image_id])
            values = metrics.compute()
            for key in ("parent_F1-50", "parent_F1-matched-50", "ancestor_F1-50", "mask_recall-50"):
                row[key] = values[key]
        result["forests"][name] = row
        print(f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in row.items()), flush=True)
    print(f"{len(images)} images")
    if args.output:
        write_json(args.output, result)


main = make_main("benchmark_entities", parse_arguments, measure)


if __name__ == "__main__":
    sys.exit(main())

"""Score predictions or pseudo-labels against ground truth: class-agnostic AR and AP, and hierarchy metrics.

    sohes evaluate --gt entities_val.json --pred labels.json
    sohes evaluate --gt instances_val2017.json --pred entity_results.json --iou-type segm bbox \\
        --output metrics.json
    sohes evaluate --gt entities_val.json --pred new.json --against old.json

--gt is a COCO file; classes are ignored, crowd regions are handled as in COCO. --pred is a COCO result list with the
image ids of the ground truth, or a COCO file with other image ids (such as labels.json of sohes label), whose images
are matched by file name, else by base name. Predictions without a score get 1. If annotations of both files have
parent_id, the hierarchy is scored too.

--against OTHER.json compares average recall with that of other predictions of the same images, with a 95% interval of
the difference from a paired bootstrap over images. The interval does not include the variance between trainings.

Exit code: 0 scored, 2 the files do not match or usage error.
"""

from __future__ import annotations

import argparse
import os

from ..structures.files import check_output, write_json
from .runner import add_prediction_options, at_least, make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes evaluate")
    add = parser.add_argument
    add("--gt", required=True, metavar="GT.json", help="ground truth, a COCO file")
    add_prediction_options(parser)
    what = "detections per image for AR; AP uses the largest (default: 1 10 100 1000)"
    add("--max-dets", nargs="+", type=at_least(1), default=[1, 10, 100, 1000], metavar="N", help=what)
    add("--against", metavar="OTHER.json", help="other predictions to compare average recall with")
    add("--no-forest", action="store_true", help="do not score the hierarchy")
    add("--output", metavar="METRICS.json", help="write all metrics, in percent, null if undefined")
    return parser.parse_args(arguments)


def score(args: argparse.Namespace) -> None:
    """Score the predictions and print the tables."""
    from ..errors import InputError
    from ..evaluation.detection_metrics import resolve_backend
    from ..evaluation.ground_truth import GroundTruth
    from ..evaluation.predictions import read_predictions
    from ..evaluation.scoring import difference_table, evaluate, flat_metrics
    from ..evaluation.significance import recall_differences

    iou_types = list(dict.fromkeys(args.iou_type))
    if args.output:
        check_output(args.output, folder=False)
    backend = resolve_backend(args.backend)
    truth = GroundTruth.from_file(args.gt)
    if not truth.has_annotations:
        raise InputError(f"{args.gt} has no annotations to compare with")
    predictions = read_predictions(args.pred, truth, args.match, args.ignore_unmatched, iou_types)
    evaluation = evaluate(
        truth, predictions.annotations, args.pred, iou_types, args.max_dets, backend, not args.no_forest
    )
    differences = {}
    if args.against:
        others = read_predictions(args.against, truth, args.match, args.ignore_unmatched, iou_types)
        for iou_type in iou_types:
            differences[iou_type] = recall_differences(
                truth.images.values(),
                truth.records(iou_type),
                others.annotations,
                predictions.annotations,
                iou_type,
                args.max_dets,
                backend,
            )
    if args.output:
        metrics = {**flat_metrics(evaluation.results), **flat_metrics(differences)}
        if evaluation.depth_confusion is not None:
            metrics["forest/depth_confusion-50"] = evaluation.depth_confusion.tolist()
        os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
        write_json(args.output, metrics)

    predicted_images = len({a["image_id"] for a in predictions.annotations})
    print(
        f"{len(truth.annotations)} true masks in {len(truth.images)} images; "
        f"{len(predictions.annotations)} predictions in {predicted_images} of them, "
        f"matched by {predictions.matched_by}; {backend}"
    )
    if predictions.ignored_images:
        print(f"{len(predictions.ignored_images)} predicted images are not in the ground truth and were skipped")
    for path, side in ((args.gt, truth), (args.pred, predictions)):
        for sentence in side.report(iou_types):
            print(f"{path}: {sentence}")
    print(f"\n{evaluation.table()}")
    if differences:
        print(f"\nBefore: {args.against}; after: {args.pred}\n\n{difference_table(differences)}")


main = make_main("sohes evaluate", parse_arguments, score)

"""Score a json of predictions on a registered data set with `EntityEvaluator`, in Detectron2's evaluation loop.

    sohes evaluate-predictions --dataset entities_bsds500_val --pred labels.json --ignore-unmatched
    sohes evaluate-predictions --dataset "my_set: gt.json, images/" --pred entity_results.json \\
        --iou-type segm bbox --output out/

The predictions replace a model's outputs, so a file is scored exactly like a model that predicts it; no image is read.
File formats and numbers are those of sohes evaluate, with two exceptions: boxes have single precision, and masks with
parent_id are scored by their bounding boxes instead of the boxes of the file.

--output receives metrics.json (percent, null if undefined) and entity_results.json, the predictions with the data
set's image ids.

Exit code: 0 scored, 2 the files do not match or usage error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..structures.files import check_output, write_json
from .runner import add_prediction_options, make_main, tool_parser

METRICS_FILE = "metrics.json"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes evaluate-predictions")
    add = parser.add_argument
    what = "a registered data set (under $DETECTRON2_DATASETS), or the description of another"
    add("--dataset", required=True, metavar="NAME or 'NAME: GT.json, IMAGES'", help=what)
    add_prediction_options(parser)
    add("--output", "--output-dir", metavar="FOLDER", help="write metrics.json and entity_results.json there")
    return parser.parse_args(arguments)


class StoredPredictions:
    """Stand-in for a model: called with a batch of inputs, it returns stored predictions."""

    def __init__(self, predictions: Iterable[Mapping[str, Any]], sizes: Mapping[Any, tuple[int, int]], source: str):
        """
        Args:
            predictions: validated records with the ``image_id`` of the data set (see `read_predictions`).
            sizes: image id -> (H, W), for all images of the data set.
            source: origin of the predictions, for messages.
        """
        from ..labels.reader import group_by_image

        self._sizes, self._source = sizes, source
        self._of_image = group_by_image(predictions, sizes)
        everything = [p for found in self._of_image.values() for p in found]
        # All images get the same fields, so that images without predictions are scored as well.
        self._masks = not everything or any("segmentation" in p for p in everything)
        self._boxes = bool(everything) and all("bbox" in p for p in everything)
        self._forests = self._masks and any("parent_id" in p for p in everything)

    def __call__(self, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        predict = self._forest if self._forests else self._instances
        return [predict(one["image_id"]) for one in inputs]

    def _instances(self, image_id: Any) -> dict[str, Any]:
        import torch

        from detectron2.structures import Boxes, Instances

        found = [p for p in self._of_image[image_id] if not self._masks or "segmentation" in p]
        instances = Instances(
            self._sizes[image_id], scores=torch.tensor([p["score"] for p in found], dtype=torch.float64)
        )
        if self._masks:
            instances.pred_masks = [p["segmentation"] for p in found]
        if self._boxes:
            boxes = torch.tensor([p["bbox"] for p in found], dtype=torch.float64).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            instances.pred_boxes = Boxes(boxes)
        return {"instances": instances}

    def _forest(self, image_id: Any) -> dict[str, Any]:
        import numpy as np

        from ..evaluation.ground_truth import predicted_forest

        found, where = self._of_image[image_id], f"{self._source}: image {image_id!r}"
        forest, ancestors = predicted_forest(found, self._sizes[image_id], where)
        if ancestors is None:
            return {"forest": forest}
        probabilities = np.zeros((len(forest), len(forest)))
        probabilities[ancestors.ancestors, ancestors.descendants] = ancestors.scores
        return {"forest": forest, "ancestor_probabilities": probabilities}


def find_dataset(dataset: str) -> str:
    """Return the name of a registered data set; a description is registered first.

    Raises:
        ConfigError: neither a name nor the description of a single data set.
    """
    from detectron2.data import DatasetCatalog

    from ..data.registration import register_builtin_datasets, register_datasets

    register_builtin_datasets()
    if dataset in DatasetCatalog.list():
        return dataset
    if ":" not in dataset:
        known = ", ".join(name for name in DatasetCatalog.list() if name.startswith("entities_"))
        raise ConfigError(
            f"no data set {dataset!r}; give the name of one ({known}) or describe it: 'name: gt.json, images'"
        )
    names = register_datasets(dataset)
    if len(names) != 1:
        raise ConfigError(f"{dataset!r} describes {len(names)} data sets; give one")
    return names[0]


def score(args: argparse.Namespace) -> None:
    """Score the predictions in Detectron2's evaluation loop and print the tables."""
    import logging

    from detectron2.data import MetadataCatalog, build_detection_test_loader, get_detection_dataset_dicts
    from detectron2.evaluation import inference_on_dataset

    from ..evaluation.entity_evaluator import EntityEvaluator
    from ..evaluation.ground_truth import GroundTruth
    from ..evaluation.predictions import read_predictions
    from ..evaluation.scoring import flat_metrics

    logging.basicConfig(format="%(message)s", stream=sys.stdout, force=True)
    for package in ("sohes_d2", "detectron2"):
        logging.getLogger(package).setLevel(logging.INFO)

    iou_types = list(dict.fromkeys(args.iou_type))
    if args.output:
        check_output(args.output, folder=True, option="--output")
    name = find_dataset(args.dataset)
    dataset = get_detection_dataset_dicts(name, filter_empty=False)
    # All pairs in the file are scored, however improbable.
    evaluator = EntityEvaluator(
        name, args.output, tasks=iou_types, backend=args.backend, min_ancestor_score=sys.float_info.min
    )
    truth = GroundTruth.from_file(MetadataCatalog.get(name).json_file)
    predictions = read_predictions(args.pred, truth, args.match, args.ignore_unmatched, iou_types)
    sizes = {image_id: truth.size(image_id) for image_id in truth.images}
    model = StoredPredictions(predictions.annotations, sizes, args.pred)
    loader = build_detection_test_loader(dataset, mapper=_without_labels)
    results = inference_on_dataset(model, loader, evaluator)
    if args.output:
        write_json(os.path.join(args.output, METRICS_FILE), flat_metrics(results))
    print(f"{len(predictions.annotations)} predictions on {name}, matched by {predictions.matched_by}")
    if predictions.ignored_images:
        print(f"{len(predictions.ignored_images)} predicted images are not in the data set and were skipped")


main = make_main("sohes evaluate-predictions", parse_arguments, score)


def _without_labels(record: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != "annotations"}

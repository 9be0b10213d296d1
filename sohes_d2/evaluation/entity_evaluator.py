"""Class-agnostic evaluator for Detectron2's test loop."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..errors import InputError
from ..labels.schema import read_id
from ..structures.files import write_json
from ..structures.forest import NO_PARENT
from ..structures.instance_fields import RLEMasks, encode_tensor
from ..structures.masks import encode_masks, mask_boxes, rle_from_coco, rle_to_json
from .detection_metrics import AUTO, resolve_backend
from .ground_truth import GroundTruth
from .scoring import evaluate

logger = logging.getLogger(__name__)

RESULTS_FILE = "entity_results.json"


class EntityEvaluator(DatasetEvaluator):
    """Class-agnostic AR@1/10/100/1000 and AP of masks and boxes, and quality of the hierarchy.

    A model's output for an image is a dict with "instances" or "forest" or both:
        "instances": Instances with ``scores`` and ``pred_masks`` ((N, H, W) tensor on any device, or a sequence of N
            RLEs) and/or ``pred_boxes``;
        "forest": a `Forest`; if present, it alone is scored, with its masks and scores;
        "ancestor_probabilities": optional, (N, N) tensor or array for the same masks, ``[i, j]`` = probability that i
            is an ancestor of j.
    Masks are stored as RLEs, so that dense masks of only one image are in memory.
    """

    def __init__(
        self,
        dataset: str,
        output_dir: str | None = None,
        *,
        tasks: Sequence[str] | None = None,
        backend: str = AUTO,
        min_ancestor_score: float = 0.05,
    ):
        """
        Args:
            dataset: name of a registered data set whose metadata has ``json_file``, or path of a COCO json file.
            output_dir: folder for ``entity_results.json``; None: do not write it.
            tasks: "segm", "bbox" or both; by default, those available in both ground truth and predictions.
            backend: "auto", "pycocotools" or "faster-coco-eval".
            min_ancestor_score: in [0, 1]; ancestor pairs of lower probability are neither saved nor ranked, because
                their number is quadratic in the number of masks.

        Raises:
            InputError: no such data set, or an unusable file.
            ValueError: an unknown backend.
        """
        self._truth = GroundTruth.from_file(_json_file(dataset))
        self._output_dir = output_dir
        self._tasks = tasks
        self._backend = resolve_backend(backend)
        self._min_ancestor_score = min_ancestor_score
        self.reset()

    def reset(self) -> None:
        """Clear all predictions."""
        self._predictions: dict[Any, list[dict[str, Any]]] = {}
        self._unreadable: list[Any] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Add the predictions of a batch.

        Args:
            inputs: dicts with ``image_id`` of the ground truth, and ``unreadable``: whether the image was replaced by a
                blank one, optional.
            outputs: a dict for each, see the class.

        Raises:
            InputError: an image that is not in the ground truth, masks of another size than there, ancestor
                probabilities of another shape, a score that is not finite, or an output without predictions.
        """
        for one_input, output in zip(inputs, outputs):
            image_id = read_id(one_input["image_id"])  # as in the ground truth: "7" becomes 7
            if image_id not in self._truth.images:
                raise InputError(
                    f"image {image_id!r} ({one_input.get('file_name', 'no file name')}) is not in {self._truth.path}; "
                    "evaluate on the data set from which the images are loaded"
                )
            self._predictions[image_id] = self._annotations(image_id, output)
            if one_input.get("unreadable"):
                self._unreadable.append(image_id)

    def _annotations(self, image_id: Any, output: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The annotations of one image. Ids count from 1 within the image; `_numbered` makes them unique."""
        boxes: np.ndarray | None = None
        masks = forest = None
        if "forest" in output:
            forest = output["forest"]
            masks, scores = forest.masks, forest.scores
        elif "instances" in output:
            instances = output["instances"]
            scores = instances.scores.detach().double().cpu().numpy()
            if instances.has("pred_masks"):
                masks = _encode(instances.pred_masks)
            if instances.has("pred_boxes"):
                boxes = instances.pred_boxes.tensor.detach().double().cpu().numpy().copy()
                boxes[:, 2:] -= boxes[:, :2]
        else:
            raise InputError(f"the output for image {image_id!r} has neither 'instances' nor 'forest'")
        if masks is None and boxes is None:
            raise InputError(f"the instances of image {image_id!r} have neither pred_masks nor pred_boxes")
        if not np.isfinite(scores).all():
            raise InputError(f"image {image_id!r} has a score that is not finite")
        annotations: list[dict[str, Any]] = [
            {"id": k + 1, "image_id": image_id, "category_id": 1, "score": float(score)}
            for k, score in enumerate(scores)
        ]
        if masks is not None:
            self._check_size(image_id, masks)
            for annotation, mask in zip(annotations, masks):
                annotation["segmentation"] = mask
            boxes = mask_boxes(masks) if boxes is None else boxes
        assert boxes is not None
        for annotation, box in zip(annotations, boxes.tolist()):
            annotation["bbox"] = box
        if forest is not None:
            for annotation, parent in zip(annotations, forest.parents.tolist()):
                annotation["parent_id"] = 0 if parent == NO_PARENT else parent + 1
        if output.get("ancestor_probabilities") is not None:
            self._add_ancestor_scores(annotations, output["ancestor_probabilities"])
        return annotations

    def _check_size(self, image_id: Any, masks: Sequence[dict[str, Any]]) -> None:
        size = self._truth.size(image_id)
        for mask in masks:
            if tuple(mask["size"]) != size:
                raise InputError(
                    f"image {image_id!r} has masks of size {tuple(mask['size'])}, in {self._truth.path} its size is "
                    f"{size}; resize predictions to the 'height' and 'width' of the input"
                )

    def _add_ancestor_scores(self, annotations: list[dict[str, Any]], probabilities: Any) -> None:
        if isinstance(probabilities, torch.Tensor):
            probabilities = probabilities.detach().double().cpu().numpy()
        probabilities = np.asarray(probabilities)
        if probabilities.shape != (len(annotations), len(annotations)):
            raise InputError(f"{len(annotations)} masks, but ancestor probabilities of shape {probabilities.shape}")
        for k, annotation in enumerate(annotations):
            column = probabilities[:, k]
            ancestors = np.flatnonzero(column >= self._min_ancestor_score)
            annotation["ancestor_scores"] = [[int(i) + 1, round(float(column[i]), 6)] for i in ancestors if i != k]

    def evaluate(self, image_ids: Sequence[Any] | None = None) -> OrderedDict[str, dict[str, float]]:
        """Score the predictions since `reset`, log a table, and save the predictions.

        Entities of images without predictions count as missed.

        Args:
            image_ids: score only these images of the data set.

        Returns:
            ``{"segm": {"AR@1000": ..., ...}, "bbox": {...}, "forest": {...}}``, in percent, and if images could not be
            read, ``"images": {"unreadable": 3.0, "unreadable-share": 0.02}``; Detectron2 flattens the names to
            ``segm/AR@1000``. The names are those of `evaluate_detections` and `ForestMetrics.compute`. Empty on all
            processes but the first, and for data without annotations.
        """
        predictions, unreadable = self._predictions, len(self._unreadable)
        if comm.get_world_size() > 1:
            comm.synchronize()
            gathered = comm.gather(self._predictions, dst=0)
            unreadable = sum(comm.gather(unreadable, dst=0))
            if not comm.is_main_process():
                return OrderedDict()
            predictions = {image_id: found for part in gathered for image_id, found in part.items()}
        missing = len(self._truth.images) - len(predictions)
        if missing and image_ids is None:
            logger.warning(f"{missing} of {len(self._truth.images)} images have no predictions")
        annotations = _numbered(predictions)
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, RESULTS_FILE)
            write_json(path, [_to_json(a) for a in annotations], indent=None)
            logger.info(f"{len(annotations)} predictions saved to {path}")
        if not self._truth.has_annotations:
            logger.info(f"{self._truth.path} has no annotations: predictions are saved, not scored")
            return OrderedDict()
        truth = self._truth
        if image_ids is not None:
            truth = truth.restricted(image_ids)
            annotations = [a for a in annotations if a["image_id"] in truth.images]
        tasks = self._tasks or _possible_tasks(truth, annotations)
        for sentence in truth.report(tasks):
            logger.warning(f"{truth.path}: {sentence}")
        evaluation = evaluate(truth, annotations, "predictions", tasks, backend=self._backend)
        logger.info(f"Class-agnostic results in percent ({self._backend}):\n{evaluation.table()}")
        results = evaluation.results
        if unreadable:
            results["images"] = {"unreadable": float(unreadable), "unreadable-share": unreadable / len(predictions)}
        return results


def _json_file(dataset: str) -> str:
    """The COCO file of a registered data set, or the path itself."""
    if dataset in MetadataCatalog.list():  # get() would create an entry for any name
        path = MetadataCatalog.get(dataset).get("json_file")
        if not path:
            raise InputError(
                f"the metadata of data set {dataset!r} has no json_file; register it with register_coco_instances, or "
                "give the path of a COCO json file"
            )
        return PathManager.get_local_path(path)
    if not PathManager.isfile(dataset):
        raise InputError(f"{dataset!r} is neither a registered data set nor a file")
    return PathManager.get_local_path(dataset)


def _encode(masks: Any) -> list[dict[str, Any]]:
    """RLEs of ``pred_masks`` in any supported form."""
    masks = getattr(masks, "tensor", masks)  # Detectron2's BitMasks
    if isinstance(masks, torch.Tensor):
        return encode_tensor(masks)
    if isinstance(masks, RLEMasks):
        return masks.rles
    masks = list(masks)
    if masks and isinstance(masks[0], Mapping):
        return [rle_from_coco(dict(m), tuple(m["size"])) for m in masks]
    return encode_masks(masks)


def _numbered(predictions: Mapping[Any, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """All annotations in the order of image ids, with ids from 1 that are unique in the file."""
    annotations = []
    offset = 0
    for image_id in sorted(predictions, key=lambda i: (str(type(i)), i)):
        for annotation in predictions[image_id]:
            numbered = {**annotation, "id": annotation["id"] + offset}
            if annotation.get("parent_id"):
                numbered["parent_id"] = annotation["parent_id"] + offset
            if "ancestor_scores" in annotation:
                numbered["ancestor_scores"] = [[i + offset, score] for i, score in annotation["ancestor_scores"]]
            annotations.append(numbered)
        offset += len(predictions[image_id])
    return annotations


def _to_json(annotation: dict[str, Any]) -> dict[str, Any]:
    if "segmentation" not in annotation:
        return annotation
    return {**annotation, "segmentation": rle_to_json(annotation["segmentation"])}


def _possible_tasks(truth: GroundTruth, predictions: Sequence[dict[str, Any]]) -> list[str]:
    """Boxes, and masks if both ground truth and predictions have them (without predictions: the ground truth)."""
    predicted_masks = not predictions or any("segmentation" in p for p in predictions)
    return ["segm", "bbox"] if truth.has_masks and predicted_masks else ["bbox"]

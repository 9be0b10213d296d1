"""Ground truth from a COCO file, checked when it is read and not in the middle of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from ..structures.forest import Forest, ForestError
from ..structures.masks import RLE, mask_areas, mask_boxes, rle_from_coco
from ..structures.rle_check import check_rle
from .errors import EvaluationError
from .forest_metrics import AncestorScores


class GroundTruth:
    """A COCO data set to compare with.

    Attributes:
        path: of the file, for messages.
        images: image id -> COCO image (``file_name``, ``height``, ``width``).
        annotations: COCO annotations, of any classes.
        has_annotations: False for test sets whose truth is kept back.
    """

    def __init__(self, content: dict[str, Any], path: str):
        """
        Raises:
            EvaluationError: not a COCO data set, images without size, annotations of unknown images.
        """
        self.path = path
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise EvaluationError(f"{path}: not a COCO data set (an object with 'images' and 'annotations')")
        self.images = images_by_id(content["images"], path)
        self.has_annotations = "annotations" in content
        self.annotations: list[dict[str, Any]] = content.get("annotations") or []
        for annotation in self.annotations:
            if annotation.get("image_id") not in self.images:
                raise EvaluationError(
                    f"{path}: annotation {annotation.get('id')} belongs to image {annotation.get('image_id')!r}, which "
                    "the file does not have; repair the file"
                )

    @classmethod
    def from_file(cls, path: str) -> GroundTruth:
        """Read a COCO file.

        Raises:
            EvaluationError: the file is missing, is not json, or not a COCO data set.
        """
        return cls(read_json(path), path)

    def size(self, image_id: Any) -> tuple[int, int]:
        """(H, W) of an image."""
        image = self.images[image_id]
        return int(image["height"]), int(image["width"])

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have segmentations."""
        return any("segmentation" in a for a in self.annotations)

    @property
    def has_hierarchy(self) -> bool:
        """Whether any annotation names a parent or says that it has none."""
        return any("parent_id" in a for a in self.annotations)

    @cached_property
    def masks(self) -> list[RLE]:
        """One compressed RLE per annotation, in their order.

        Raises:
            EvaluationError: a segmentation that is missing, broken or of another size than its image.
        """
        return [
            read_mask(a, self.size(a["image_id"]), f"{self.path}: annotation {a.get('id')}") for a in self.annotations
        ]

    def records(self, iou_type: str) -> list[dict[str, Any]]:
        """What `evaluate_detections` needs of each annotation; areas and boxes that lack come from the masks.

        Raises:
            EvaluationError: a segmentation or box that is missing or broken.
        """
        need_masks = iou_type == "segm" or any("area" not in a or "bbox" not in a for a in self.annotations)
        masks = self.masks if need_masks else [None] * len(self.annotations)
        records = []
        for annotation, mask in zip(self.annotations, masks):
            record = {key: annotation[key] for key in ("image_id", "category_id", "iscrowd") if key in annotation}
            record["area"] = annotation["area"] if "area" in annotation else int(mask_areas([mask])[0])
            if iou_type == "segm":
                record["segmentation"] = mask
            else:
                where = f"{self.path}: annotation {annotation.get('id')}"
                record["bbox"] = read_box(annotation["bbox"], where) if "bbox" in annotation else box_of(mask)
            records.append(record)
        return records

    def forests(self) -> dict[Any, Forest]:
        """Image id -> the true forest, without crowd regions; children of these go to the next ancestor.

        Raises:
            EvaluationError: a parent that is not there, or a circle.
        """
        annotations = [{**a, "segmentation": mask} for a, mask in zip(self.annotations, self.masks)]
        forests = {}
        for image_id, mine in group_by_image(annotations, self.images).items():
            try:
                forest = Forest.from_coco([{**a, "score": 1.0} for a in mine], self.size(image_id))
                forests[image_id] = forest.subset(np.array([not a.get("iscrowd") for a in mine], bool))
            except ForestError as error:
                raise EvaluationError(f"{self.path}: image {image_id}: {error}; repair its parent_id") from error
        return forests


def predicted_forest(
    annotations: list[dict[str, Any]], size: tuple[int, int], where: str
) -> tuple[Forest, AncestorScores | None]:
    """The forest of one image's predictions and, where they carry them, the scores of ancestor pairs.

    Args:
        annotations: with ``id``, ``segmentation``, ``score``, ``parent_id`` and perhaps ``ancestor_scores``: a list of
            [id of an ancestor, score] for each mask.
        size: (H, W).
        where: file and image, for messages.

    Raises:
        EvaluationError: a parent or ancestor that is not there, a circle, or missing ids.
    """
    if any("id" not in a for a in annotations):
        raise EvaluationError(f"{where}: a prediction has parent_id but no id, so nothing can be its parent; add ids")
    try:
        forest = Forest.from_coco(annotations, size)
        forest.depths()
    except ForestError as error:
        raise EvaluationError(f"{where}: {error}; repair its parent_id") from error
    if not any("ancestor_scores" in a for a in annotations):
        return forest, None
    index = {a["id"]: k for k, a in enumerate(annotations)}
    pairs: list[tuple[int, int, float]] = []
    for k, annotation in enumerate(annotations):
        for ancestor, score in annotation.get("ancestor_scores") or []:
            if ancestor not in index:
                raise EvaluationError(
                    f"{where}: annotation {annotation['id']} has a score for ancestor {ancestor}, which is not a "
                    "prediction of its image; remove the pair"
                )
            pairs.append((index[ancestor], k, score))
    table = np.array(pairs, np.float64).reshape(-1, 3)
    return forest, AncestorScores(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])


def group_by_image(annotations: Iterable[dict[str, Any]], image_ids: Iterable[Any]) -> dict[Any, list[dict[str, Any]]]:
    """Image id -> its annotations, in their order; images without any have an empty list."""
    groups: dict[Any, list[dict[str, Any]]] = {image_id: [] for image_id in image_ids}
    for annotation in annotations:
        groups[annotation["image_id"]].append(annotation)
    return groups


def read_json(path: str) -> Any:
    """The content of a json file.

    Raises:
        EvaluationError: the file is missing or is not json.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    except ValueError as error:  # also UnicodeDecodeError
        raise EvaluationError(f"{path} is not json: {error}; was it cut off or compressed?") from error


def images_by_id(images: list[dict[str, Any]], path: str) -> dict[Any, dict[str, Any]]:
    """COCO images by id.

    Raises:
        EvaluationError: an image without id, height or width, or an id that occurs twice.
    """
    by_id: dict[Any, dict[str, Any]] = {}
    for image in images:
        missing = [key for key in ("id", "height", "width") if key not in image]
        if missing:
            raise EvaluationError(f"{path}: image {image.get('file_name', image.get('id'))!r} has no {missing[0]!r}")
        if image["id"] in by_id:
            raise EvaluationError(f"{path}: two images have the id {image['id']!r}; make ids unique")
        by_id[image["id"]] = image
    return by_id


def read_mask(annotation: dict[str, Any], size: tuple[int, int], where: str) -> RLE:
    """The checked RLE of an annotation.

    Args:
        annotation: with ``segmentation``: polygons, or RLE with or without compression.
        size: (H, W) of its image.
        where: file and annotation, for messages.

    Raises:
        EvaluationError: the segmentation is missing, broken or of another size.
    """
    segmentation = annotation.get("segmentation")
    if segmentation is None:
        raise EvaluationError(f"{where} has no segmentation; give it one, or evaluate boxes only (bbox)")
    try:
        rle = rle_from_coco(segmentation, size)
        if isinstance(segmentation, dict):  # polygons are drawn here and cannot be unsound
            if isinstance(segmentation["counts"], list):
                _check_plain_counts(segmentation["counts"], size)
            else:
                check_rle(rle)
    except Exception as error:  # pycocotools raises plain exceptions and nearly anything else on malformed polygons
        raise EvaluationError(f"{where}: {error}") from error
    return rle


def _check_plain_counts(counts: list[int], size: tuple[int, int]) -> None:
    if sum(counts) != size[0] * size[1] or min(counts) < 0:
        raise ValueError(f"the runs of the RLE add up to {sum(counts)} pixels, its image has {size[0]} x {size[1]}")


def read_box(box: Any, where: str) -> list[float]:
    """A checked (x, y, width, height).

    Raises:
        EvaluationError: not four finite numbers, or a negative size.
    """
    try:
        values = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all() or (values[2:] < 0).any():
        raise EvaluationError(f"{where}: the bbox must be x, y, width, height, got {box!r}")
    return values.tolist()


def box_of(mask: RLE) -> list[float]:
    """The tight box of a mask as (x, y, width, height)."""
    return mask_boxes([mask])[0].tolist()

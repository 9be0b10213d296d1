"""Ground truth from a COCO file, checked when it is read and not in the middle of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from ..labels.forests import find_parents
from ..labels.reader import LabelFile, annotation_place, read_label_file
from ..labels.schema import Annotation, RecordError, read_area, read_box, read_category
from ..structures.forest import Forest, ForestError
from ..structures.masks import RLE, MaskError, encode_runs, has_segmentation, mask_areas, mask_boxes, rle_from_coco
from .errors import EvaluationError
from .forest_metrics import AncestorScores


class GroundTruth:
    """A COCO data set to compare with.

    Annotations without a mask, such as the boxes that labeling tools leave among masks, are no part of the evaluation
    of masks; `report` tells how many there are. Whatever else is wrong refuses the file: numbers would change.

    Attributes:
        path: of the file, for messages.
        images: image id -> COCO image (``file_name``, ``height``, ``width``).
        annotations: COCO annotations, of any classes.
        has_annotations: False for test sets whose truth is kept back.
    """

    def __init__(self, file: LabelFile):
        """
        Raises:
            InputError: images without size.
        """
        self._file = file
        self.path, self.images, self.annotations = file.path, file.images, file.annotations
        self.has_annotations = file.has_annotations
        for image_id in self.images:
            file.size(image_id)

    @classmethod
    def from_file(cls, path: str) -> GroundTruth:
        """Read a COCO file.

        Raises:
            InputError: the file is missing, is not json, or not a COCO data set.
        """
        file = read_label_file(path, strict=True)
        if file.is_result_list:
            raise EvaluationError(f"{path} is not a COCO data set, but a list of results; give the file with 'images'")
        return cls(file)

    def restricted(self, image_ids: Iterable[Any]) -> GroundTruth:
        """The same truth for these images alone.

        Raises:
            InputError: an image that the file does not have.
        """
        return GroundTruth(self._file.restricted(image_ids))

    def size(self, image_id: Any) -> tuple[int, int]:
        """(H, W) of an image."""
        return self._file.size(image_id)

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have segmentations."""
        return any(map(has_segmentation, self.annotations))

    @property
    def has_hierarchy(self) -> bool:
        """Whether any annotation names a parent or says that it has none."""
        return self._file.has_hierarchy

    @cached_property
    def masks(self) -> list[RLE | None]:
        """One compressed RLE per annotation, in their order; None for one that has no mask.

        Raises:
            EvaluationError: a segmentation that is broken or of another size than its image, or no mask at all.
        """
        if self.annotations and not self.has_masks:
            raise EvaluationError(
                f"{self.path}: {self._where(0)} has no segmentation, nor has any other annotation; evaluate boxes "
                "only (bbox)"
            )
        return [
            read_mask(a, self.size(a["image_id"]), f"{self.path}: {self._where(k)}") if has_segmentation(a) else None
            for k, a in enumerate(self.annotations)
        ]

    def records(self, iou_type: str) -> list[dict[str, Any]]:
        """What `evaluate_detections` needs of each annotation; areas and boxes that lack come from the masks.

        Raises:
            EvaluationError: a segmentation or box that is broken, or a box that is missing where there is no mask.
        """
        records = []
        for k, annotation in enumerate(self.annotations):
            try:
                area, box = read_area(annotation), read_box(annotation) if iou_type == "bbox" else None
            except RecordError as error:
                raise EvaluationError(f"{self.path}: {self._where(k)}: {error}") from error
            needs_mask = iou_type == "segm" or area is None or box is None
            mask = self.masks[k] if needs_mask else None
            if mask is None and iou_type == "segm":
                continue
            if mask is not None:
                area = float(mask_areas([mask])[0]) if area is None else area
                box = box_of(mask) if box is None and iou_type == "bbox" else box
            elif box is None:
                raise EvaluationError(f"{self.path}: {self._where(k)} has neither a bbox nor a mask; give it one")
            elif area is None:
                area = box[2] * box[3]
            records.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": read_category(annotation),
                    "iscrowd": annotation["iscrowd"],
                    "area": area,
                    **({"segmentation": mask} if iou_type == "segm" else {"bbox": box}),
                }
            )
        return records

    def forests(self) -> dict[Any, Forest]:
        """Image id -> the true forest, without crowd regions; children of these go to the next ancestor.

        Raises:
            EvaluationError: a parent that is not there, or a circle.
        """
        masks = {id(annotation): mask for annotation, mask in zip(self.annotations, self.masks)}
        forests = {}
        for image_id, mine in self._file.by_image.items():
            found = [masks[id(annotation)] for annotation in mine]
            forest = checked_forest(mine, found, self.size(image_id), f"{self.path}: image {image_id}")
            kept = [not a["iscrowd"] and mask is not None for a, mask in zip(mine, found)]
            forests[image_id] = forest.subset(np.array(kept, bool))
        return forests

    def report(self, iou_types: Iterable[str]) -> list[str]:
        """What of the truth cannot be found by any prediction, a sentence for each kind; empty if all can be."""
        if "segm" not in iou_types or not self.has_masks:
            return []
        boxes = sum(mask is None for mask in self.masks)
        empty = int((mask_areas([mask for mask in self.masks if mask is not None]) == 0).sum())
        sentences = [f"{boxes} true annotations have no mask and are left out of segm"] if boxes else []
        return sentences + ([f"{empty} true masks are empty: nothing can match them"] if empty else [])

    def _where(self, index: int) -> str:
        return annotation_place(self.annotations[index], index)


def checked_forest(
    annotations: list[Any],
    masks: list[RLE | None],
    size: tuple[int, int],
    where: str,
    scores: list[float] | None = None,
) -> Forest:
    """The forest of one image's annotations, of all of them; a mask of None is empty in it.

    Raises:
        EvaluationError: a parent that is not there, or a circle.
    """
    parents, lost = find_parents(annotations)
    if lost:
        child = annotations[lost[0]]
        raise EvaluationError(
            f"{where}: annotation {child['id']} names parent {child['parent_id']}, which is not an annotation of its "
            "image; repair its parent_id"
        )
    empty = encode_runs([size[0] * size[1]], size)
    forest = Forest([empty if mask is None else mask for mask in masks], parents, size, scores=scores)
    try:
        forest.depths()
    except ForestError as error:
        raise EvaluationError(f"{where}: {error}; repair its parent_id") from error
    return forest


def predicted_forest(
    annotations: list[dict[str, Any]], size: tuple[int, int], where: str
) -> tuple[Forest, AncestorScores | None]:
    """The forest of one image's predictions and, where they carry them, the scores of ancestor pairs.

    Args:
        annotations: with ``id``, ``segmentation`` (RLE), ``score``, ``parent_id`` and perhaps ``ancestor_scores``: a
            list of [id of an ancestor, score] for each mask.
        size: (H, W).
        where: file and image, for messages.

    Raises:
        EvaluationError: a parent or ancestor that is not there, or a circle.
    """
    forest = checked_forest(
        annotations, [a["segmentation"] for a in annotations], size, where, [a["score"] for a in annotations]
    )
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


def read_mask(annotation: Annotation, size: tuple[int, int], where: str) -> RLE:
    """The checked RLE of an annotation.

    Args:
        annotation: with ``segmentation``: polygons, or RLE with or without compression.
        size: (H, W) of its image.
        where: file and annotation, for messages.

    Raises:
        EvaluationError: the segmentation is missing, broken or of another size.
    """
    if annotation.get("segmentation") is None:
        raise EvaluationError(f"{where} has no segmentation; give it one, or evaluate boxes only (bbox)")
    try:
        return rle_from_coco(annotation["segmentation"], size)
    except MaskError as error:
        raise EvaluationError(f"{where}: {error}") from error


def box_of(mask: RLE) -> list[float]:
    """The tight box of a mask as (x, y, width, height)."""
    return mask_boxes([mask])[0].tolist()

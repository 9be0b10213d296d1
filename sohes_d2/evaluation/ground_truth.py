"""Ground truth from a COCO file, validated on reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import InputError, RecordError
from ..labels.forests import link
from ..labels.reader import LabelFile
from ..labels.schema import Problems, annotation_place, read_area, read_box, read_category
from ..structures.forest import Forest
from ..structures.masks import RLE, has_segmentation, mask_areas, mask_boxes, rle_from_coco
from .forest_metrics import AncestorScores


class GroundTruth(LabelFile):
    """A COCO data set used as ground truth.

    Annotations without mask, such as single boxes among the masks of an annotation tool, are not evaluated as masks;
    `report` gives their number. Any other invalid annotation is an error, because skipping it would change the results.

    Attributes:
        path: path of the file, for messages.
        images: image id -> COCO image (``file_name``, ``height``, ``width``).
        annotations: COCO annotations, of any classes.
        has_annotations: False for test sets without public ground truth.
    """

    @classmethod
    def from_file(cls, path: str) -> GroundTruth:
        """Read a COCO file.

        Raises:
            InputError: the file is missing, not json, not a COCO data set, or has images without size.
        """
        truth = cls.read(path, strict=True)
        for image_id in truth.images:
            truth.size(image_id)
        return truth

    @property
    def has_masks(self) -> bool:
        """Whether the annotations have segmentations."""
        return any(map(has_segmentation, self.annotations))

    @cached_property
    def masks(self) -> list[RLE | None]:
        """One compressed RLE per annotation, in order; None for annotations without mask.

        Raises:
            InputError: an invalid segmentation, one of another size than its image, or no mask at all.
        """
        if self.annotations and not self.has_masks:
            raise InputError(
                f"{self.path}: {self._where(0)} has no segmentation, nor has any other annotation; evaluate boxes "
                "only (bbox)"
            )
        masks: list[RLE | None] = [None] * len(self.annotations)
        for k, annotation in enumerate(self.annotations):
            if has_segmentation(annotation):
                with self.problems.at(self._where(k)):
                    masks[k] = rle_from_coco(annotation["segmentation"], self.size(annotation["image_id"]))
        return masks

    def records(self, iou_type: str) -> list[dict[str, Any]]:
        """Records for `evaluate_detections`; missing areas and boxes are computed from the masks.

        Raises:
            InputError: an invalid segmentation or box, or an annotation with neither box nor mask.
        """
        records = []
        for k, annotation in enumerate(self.annotations):
            with self.problems.at(self._where(k)):
                area, box = read_area(annotation), read_box(annotation) if iou_type == "bbox" else None
                mask = self.masks[k] if iou_type == "segm" or area is None or box is None else None
                if mask is None and box is None and iou_type == "bbox":
                    raise RecordError("it has neither a bbox nor a mask", "no bbox")
            if mask is None and iou_type == "segm":
                continue
            if area is None:
                area = float(mask_areas([mask])[0]) if mask else box[2] * box[3] if box else 0.0
            if box is None and mask is not None and iou_type == "bbox":
                box = mask_boxes([mask])[0].tolist()
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
        """True forests by image id, without crowd regions and annotations without mask.

        The children of these are linked to their nearest kept ancestor.

        Raises:
            InputError: a missing parent, or a cycle.
        """
        masks = {id(annotation): mask for annotation, mask in zip(self.annotations, self.masks)}
        forests = {}
        for image_id, records in self.by_image.items():
            found = [masks[id(record)] for record in records]
            size, where = self.size(image_id), f"image {image_id}"
            forest = link(records, found, size, self.problems, where, scores=[1.0] * len(records))
            kept = [not record["iscrowd"] and mask is not None for record, mask in zip(records, found)]
            forests[image_id] = forest.subset(np.array(kept, bool))
        return forests

    def report(self, iou_types: Iterable[str]) -> list[str]:
        """Messages about missing and empty true masks, see `describe_masks`; empty without "segm"."""
        if "segm" not in iou_types or not self.has_masks:  # masks do not affect the evaluation of boxes
            return []
        return describe_masks(self.masks, "true annotations", "true masks")

    def _where(self, index: int) -> str:
        return annotation_place(self.annotations[index], index)


def predicted_forest(annotations: list[Any], size: tuple[int, int], where: str) -> tuple[Forest, AncestorScores | None]:
    """The forest of one image's predictions and, if available, the scores of ancestor pairs.

    Args:
        annotations: with ``id``, ``segmentation`` (RLE; those without are skipped), ``score``, ``parent_id`` and
            optionally ``ancestor_scores``: a list of [id of an ancestor, score] for each mask.
        size: (H, W).
        where: file and image, for messages.

    Raises:
        InputError: a missing parent or ancestor, or a cycle.
    """
    masks = [a.get("segmentation") for a in annotations]
    scores = [a["score"] for a in annotations]
    present = np.flatnonzero([mask is not None for mask in masks])
    forest = link(annotations, masks, size, Problems(where), "", scores).subset(present)
    if not any("ancestor_scores" in a for a in annotations):
        return forest, None
    known = {a["id"] for a in annotations}
    index = {annotations[k]["id"]: n for n, k in enumerate(present)}  # id -> index in the forest
    pairs: list[tuple[int, int, float]] = []
    for annotation in annotations:
        for ancestor, score in annotation.get("ancestor_scores") or []:
            if ancestor not in known:
                raise InputError(
                    f"{where}: annotation {annotation['id']} has a score for ancestor {ancestor}, which is not a "
                    "prediction of its image; remove the pair"
                )
            if ancestor in index and annotation["id"] in index:
                pairs.append((index[ancestor], index[annotation["id"]], score))
    table = np.array(pairs, np.float64).reshape(-1, 3)
    return forest, AncestorScores(table[:, 0].astype(np.int64), table[:, 1].astype(np.int64), table[:, 2])


def describe_masks(masks: Sequence[RLE | None], annotations: str, called: str) -> list[str]:
    """Messages with the numbers of missing and of empty masks, if there are any.

    Args:
        masks: masks of a file; None for a missing one.
        annotations: what the records of the file are called in the messages.
        called: what their masks are called.
    """
    present = [mask for mask in masks if mask is not None]
    missing, empty = len(masks) - len(present), int((mask_areas(present) == 0).sum())
    sentences = {
        f"{missing} {annotations} have no mask and are skipped for segm": missing,
        f"{empty} {called} are empty: nothing can match them": empty,
    }
    return [sentence for sentence, count in sentences.items() if count]

"""Predictions from a json file, validated and mapped to the image ids of the ground truth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError, RecordError
from ..labels.reader import DESCRIPTIONS, LabelFile, match_images, read_label_file
from ..labels.schema import (
    Annotation,
    annotation_place,
    read_box,
    read_id,
    read_number,
    read_score,
)
from ..structures.masks import has_segmentation, mask_boxes, rle_from_coco
from .ground_truth import GroundTruth, describe_masks

MATCHINGS = ("auto", "name", "basename", "id")


@dataclass
class Predictions:
    """Detections with the ground truth's image ids.

    Attributes:
        path: path of the file, for messages.
        annotations: each with ``image_id``, ``score``, ``segmentation`` (compressed RLE) and/or ``bbox``
            (x, y, width, height), and optionally ``id``, ``parent_id``, ``ancestor_scores``.
        matched_by: "image id", "file name" or "last part of the file name".
        ignored_images: names, or else ids, of images of the file that are not in the ground truth.
    """

    path: str
    annotations: list[dict[str, Any]]
    matched_by: str
    ignored_images: list[Any] = field(default_factory=list)

    def report(self, iou_types: Iterable[str]) -> list[str]:
        """Messages about predictions that cannot be correct, one per kind; empty if there are none."""
        masks = [annotation.get("segmentation") for annotation in self.annotations]
        return describe_masks(masks, "predictions", "predicted masks") if "segm" in iou_types else []


def read_predictions(
    path: str,
    truth: GroundTruth,
    matching: str = "auto",
    ignore_unmatched: bool = False,
    iou_types: Iterable[str] = ("segm", "bbox"),
) -> Predictions:
    """Read a COCO result list, or a COCO data set such as a file of pseudo-labels.

    A result list uses the image ids of the ground truth. A data set has ids of its own: its images are matched by file
    name, else by base name if that is unique in both files, else by id.

    Args:
        path: json file.
        truth: the ground truth.
        matching: "auto" as above, or "name", "basename", "id" to force one.
        ignore_unmatched: skip images that are not in the ground truth, instead of rejecting the file.
        iou_types: tasks to evaluate; masks are not read for "bbox" alone, unless a box is missing.

    Raises:
        InputError: the file cannot be read; an image that is not in the ground truth, or has another size there; a
            prediction with an invalid mask, box or score. The message names the file and the annotation.
    """
    if matching not in MATCHINGS:
        raise ValueError(f"matching must be one of {', '.join(MATCHINGS)}, got {matching!r}")
    file = read_label_file(path, strict=True, results_allowed=True)
    if not file.has_annotations:
        raise InputError(f"{path}: neither a result list nor a COCO data set with 'annotations'")
    if file.is_result_list and matching not in ("auto", "id"):
        raise InputError(f"{path} is a result list, which has no file names; match by id")
    parts = {"auto": ("name", "basename"), "id": ()}.get(matching, (matching,))
    to_truth, part = match_images(file, truth, parts)
    matched_by = DESCRIPTIONS[part]
    names = {image_id: image.get("file_name", f"id {image_id}") for image_id, image in file.images.items()}
    _check_sizes(file, to_truth, truth)
    unmatched = [names.get(k, k) for k, true_id in to_truth.items() if true_id is None]
    if unmatched and not ignore_unmatched:
        expected = [i if part == "id" else image.get("file_name", i) for i, image in truth.images.items()]
        raise InputError(
            f"{path}: {len(unmatched)} of {len(to_truth)} images are not in {truth.path} (matched by {matched_by}), "
            f"for example {_few(unmatched)}; the ground truth has, for example, {_few(expected)}. Give the "
            "matching pair of files, match by another key (--match), or skip them (--ignore-unmatched)"
        )
    annotations = []
    for k, entry in enumerate(file.annotations):
        image_id = to_truth[entry["image_id"]]
        if image_id is not None:
            with file.problems.at(annotation_place(entry, k)):
                annotations.append(_read_entry(entry, image_id, truth.size(image_id), tuple(iou_types)))
    if annotations and "segm" in iou_types and not any("segmentation" in a for a in annotations):
        raise InputError(f"{path}: no prediction has a segmentation; give them one, or evaluate boxes only (bbox)")
    return Predictions(path, annotations, matched_by, unmatched)


def _few(names: list[Any]) -> str:
    return ", ".join(map(repr, names[:3]))


def _check_sizes(file: LabelFile, to_truth: dict[Any, Any], truth: GroundTruth) -> None:
    for image_id, image in file.images.items():
        true_id, size = to_truth[image_id], file.size(image_id)
        if true_id is not None and size != truth.size(true_id):
            raise InputError(
                f"{file.path}: image {image.get('file_name', image_id)!r} is {size[0]} x {size[1]} (height x width), "
                f"in {truth.path} it is {truth.size(true_id)[0]} x {truth.size(true_id)[1]}; predict at the size of "
                "the ground truth"
            )


def _read_entry(entry: Annotation, image_id: Any, size: tuple[int, int], iou_types: tuple[str, ...]) -> dict[str, Any]:
    annotation: dict[str, Any] = {"id": entry["id"], "image_id": image_id}
    annotation["score"] = read_score(entry)  # 1 in files of ground truth form, which have no scores
    box = read_box(entry) if "bbox" in iou_types or "segm" not in iou_types else None
    if "parent_id" in entry:
        annotation["parent_id"] = entry["parent_id"]
    if entry.get("ancestor_scores") is not None:
        annotation["ancestor_scores"] = _ancestor_scores(entry["ancestor_scores"])
    needed = "bbox" in iou_types and box is None
    if needed or "segm" in iou_types and has_segmentation(entry):
        annotation["segmentation"] = rle_from_coco(entry.get("segmentation"), size)
    if "bbox" in iou_types:
        annotation["bbox"] = mask_boxes([annotation["segmentation"]])[0].tolist() if box is None else box
    return annotation


def _ancestor_scores(pairs: Any) -> list[list[Any]]:
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise RecordError("`ancestor_scores` must be a list of [id, score]", "wrong ancestor_scores")
    return [[read_id(ancestor, "ancestor"), read_number(score, "ancestor score")] for ancestor, score in pairs]

"""Predictions from a json file, brought to the ground truth's image ids and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..structures.image_names import RepeatedNameError, match_by_name
from ..structures.masks import mask_areas
from .errors import EvaluationError
from .ground_truth import GroundTruth, box_of, images_by_id, read_box, read_json, read_mask

MATCHINGS = ("auto", "name", "basename", "id")
DESCRIPTIONS = {"name": "file name", "basename": "last part of the file name"}
_FEW = 3  # examples in a message


@dataclass
class Predictions:
    """Detections with the ground truth's image ids.

    Attributes:
        path: of the file, for messages.
        annotations: each with ``image_id``, ``score``, ``segmentation`` (compressed RLE) and/or ``bbox``
            (x, y, width, height), and what the file has of ``id``, ``parent_id``, ``ancestor_scores``.
        matched_by: "image id", "file name" or "last part of the file name".
        ignored_images: images of the file that the ground truth does not have.
    """

    path: str
    annotations: list[dict[str, Any]]
    matched_by: str
    ignored_images: list[str] = field(default_factory=list)

    @property
    def has_masks(self) -> bool:
        """Whether the predictions have masks."""
        return any("segmentation" in a for a in self.annotations)

    @property
    def has_hierarchy(self) -> bool:
        """Whether any prediction names a parent or says that it has none."""
        return any("parent_id" in a for a in self.annotations)


def read_predictions(
    path: str,
    truth: GroundTruth,
    matching: str = "auto",
    ignore_unmatched: bool = False,
    iou_types: Iterable[str] = ("segm", "bbox"),
) -> Predictions:
    """Read a COCO result list, or a COCO data set such as a file of pseudo-labels.

    A result list names images by the ground truth's ids. A data set has ids of its own: its images are found by file
    name, else by the last part of the file name where that is unique in both files, else by id.

    Args:
        path: json file.
        truth: what to compare with.
        matching: "auto" as above, or "name", "basename", "id" to insist.
        ignore_unmatched: leave out images that the ground truth does not have, instead of refusing the file.
        iou_types: what will be evaluated; a broken mask is no matter to boxes.

    Raises:
        EvaluationError: the file cannot be read; an image that the ground truth does not have, or has in another size;
            a prediction with a broken mask, box or score. The message names the file and the annotation.
    """
    if matching not in MATCHINGS:
        raise ValueError(f"matching must be one of {', '.join(MATCHINGS)}, got {matching!r}")
    content = read_json(path)
    if isinstance(content, list):
        if matching not in ("auto", "id"):
            raise EvaluationError(f"{path} is a result list, which has no file names; match by id")
        entries = content
        to_truth = _match_ids(entries, truth)
        matched_by, names = "image id", {}
    elif isinstance(content, dict) and isinstance(content.get("annotations"), list):
        if not isinstance(content.get("images"), list):
            raise EvaluationError(f"{path}: a COCO data set without 'images'; add them, or give the list alone")
        entries = content["annotations"]
        images = images_by_id(content["images"], path)
        names = {image_id: image.get("file_name", f"id {image_id}") for image_id, image in images.items()}
        to_truth, matched_by = _match_images(images, truth, path, matching)
        _check_sizes(images, to_truth, truth, path)
    else:
        raise EvaluationError(f"{path}: neither a result list nor a COCO data set (an object with 'annotations')")
    unmatched = [k for k, v in to_truth.items() if v is None]
    if unmatched and not ignore_unmatched:
        examples = ", ".join(repr(names.get(k, k)) for k in unmatched[:_FEW])
        raise EvaluationError(
            f"{path}: {len(unmatched)} of {len(to_truth)} images are not in {truth.path} (matched by {matched_by}), "
            f"for example {examples}; the ground truth has, for example, {_examples(truth, matched_by)}. Give the "
            "right pair of files, match by something else (--match), or leave them out (--ignore-unmatched)"
        )
    annotations = []
    for k, entry in enumerate(entries):
        where = f"{path}: annotation {entry.get('id', f'number {k + 1}') if isinstance(entry, dict) else k + 1}"
        if not isinstance(entry, dict) or "image_id" not in entry:
            raise EvaluationError(f"{where} has no image_id")
        if entry["image_id"] not in to_truth:
            raise EvaluationError(f"{where} belongs to image {entry['image_id']!r}, which the file does not have")
        image_id = to_truth[entry["image_id"]]
        if image_id is not None:
            annotations.append(_read_entry(entry, image_id, truth.size(image_id), where, tuple(iou_types)))
    return Predictions(path, annotations, matched_by, [str(names.get(k, k)) for k in unmatched])


def _examples(truth: GroundTruth, matched_by: str) -> str:
    images = list(truth.images.items())[:_FEW]
    return ", ".join(repr(i if matched_by == "image id" else image.get("file_name", i)) for i, image in images)


def _match_ids(entries: list[Any], truth: GroundTruth) -> dict[Any, Any]:
    ids = dict.fromkeys(e["image_id"] for e in entries if isinstance(e, dict) and "image_id" in e)
    return {i: i if i in truth.images else None for i in ids}


def _match_images(
    images: dict[Any, dict[str, Any]], truth: GroundTruth, path: str, matching: str
) -> tuple[dict[Any, Any], str]:
    """Image id of the file -> image id of the ground truth or None, and by what they were matched."""
    named = all(any("file_name" in i for i in side.values()) for side in (truth.images, images))
    # Where both sides have names, equal numbers mean nothing: every tool counts its images from 1.
    if matching == "id" or (matching == "auto" and not named):
        return {i: i if i in truth.images else None for i in images}, "image id"
    theirs, ours = (
        {i: str(image["file_name"]) for i, image in side.items() if "file_name" in image}
        for side in (truth.images, images)
    )
    try:
        found, part = match_by_name(ours, theirs, tuple(DESCRIPTIONS) if matching == "auto" else (matching,))
    except RepeatedNameError as error:
        described = DESCRIPTIONS["name" if matching == "auto" else matching]
        raise EvaluationError(
            f"cannot match {path} with {truth.path} by {described}: {error}; repair the names, or match by id"
        ) from error
    return {i: found.get(i) for i in images}, DESCRIPTIONS[part]


def _check_sizes(images: dict[Any, dict[str, Any]], to_truth: dict[Any, Any], truth: GroundTruth, path: str) -> None:
    for image_id, image in images.items():
        true_id = to_truth[image_id]
        size = int(image["height"]), int(image["width"])
        if true_id is not None and size != truth.size(true_id):
            raise EvaluationError(
                f"{path}: image {image.get('file_name', image_id)!r} is {size[0]} x {size[1]} (height x width), in "
                f"{truth.path} it is {truth.size(true_id)[0]} x {truth.size(true_id)[1]}; predict at the size of the "
                "ground truth"
            )


def _read_entry(
    entry: dict[str, Any], image_id: Any, size: tuple[int, int], where: str, iou_types: tuple[str, ...]
) -> dict[str, Any]:
    annotation = {"image_id": image_id, "score": _read_score(entry, where)}
    annotation.update((key, entry[key]) for key in ("id", "parent_id", "ancestor_scores") if key in entry)
    if "segm" in iou_types or "bbox" not in entry:
        annotation["segmentation"] = read_mask(entry, size, where)
    if "bbox" in iou_types:
        has_box = entry.get("bbox") is not None and len(entry["bbox"])
        annotation["bbox"] = read_box(entry["bbox"], where) if has_box else box_of(annotation["segmentation"])
    return annotation


def _read_score(entry: dict[str, Any], where: str) -> float:
    score = entry.get("score", 1.0)  # ground-truth-like files, such as merged labels of others, have none
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise EvaluationError(f"{where}: the score must be a finite number, got {score!r}")
    return float(score)


def empty_masks(predictions: Predictions) -> int:
    """How many predicted masks have no pixel: legal, never right, and a sign of a bug in whatever made them."""
    masks = [a["segmentation"] for a in predictions.annotations if "segmentation" in a]
    return int((mask_areas(masks) == 0).sum())

"""Dataset mapper from the Detectron2 dict of an image with (pseudo-)labels to a training sample."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectron2.config import configurable
from detectron2.data import transforms as T

from ...errors import InputError
from ...labels.schema import Problems
from ...structures.crops import CropLayers
from ...structures.images import set_max_image_pixels
from .augmentation import MaskWarp, inference_augmentations, training_augmentations
from .labeled_crop import MAX_SHARE, LabeledCrop, MaskWindow, paste, trees_in_random_order
from .labels import TrainingLabels, as_tensor, read_labels, read_photo, stratified_order
from .views import StrongView, needs_teacher_view

logger = logging.getLogger(__name__)

_DONOR_ATTEMPTS = 5


class PseudoLabelDatasetMapper:
    """Read an image and its labels, augment both, and keep the remaining labels and their ancestors.

    Called with a Detectron2 dict, it returns one with `image` (3, H, W) uint8 in the channel order of INPUT.FORMAT, and
    `file_name`, `image_id`, `height` and `width` (of the file) if the input has them. In training, it adds `instances`
    with `gt_classes` (zeros), `gt_boxes`, `gt_masks` (BitMasks) and `gt_ancestors` (AncestorMatrix); they are empty for
    an image without labels (no `annotations` in the dict, see `registration.load_unlabeled`).

    With views, `image_weak` is the teacher's view and `image` the student's strong view of the same pixels, so the
    instances are valid for both. `photo_size` (h, w) is the extent of the photo in both, from the top left corner; the
    rest is padding, in which a teacher could predict masks.

    In training, None is returned for an unusable image, and Detectron2's loaders and `loaders` replace it by another
    one; it is logged once and counted in `skipped`. At test time InputError is raised, because Detectron2 would
    evaluate another image twice.

    All randomness comes from numpy's global generator, as in Detectron2's augmentations.

    Attributes:
        skipped: number of calls that returned None (each worker has its own copy of the mapper).
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Sequence[T.Augmentation | T.Transform],
        image_format: str = "RGB",
        max_labels: int = 200,
        min_label_area: int = 16,
        min_label_score: float = 0.0,
        copy_paste_probability: float = 0.0,
        copy_paste_entities: int = 5,
        views: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
    ):
        """
        Args:
            is_train: whether to return labels.
            augmentations: augmentations of the image and its masks.
            image_format: "RGB" or "BGR".
            max_labels: maximum number of labels per image, sampled evenly over sizes (see `stratified_order`).
            min_label_area: pixels after the augmentations, at least 1; smaller labels are dropped.
            min_label_score: labels with a lower score are dropped.
            copy_paste_probability: probability of pasting entities of another image. Needs `set_donors`, and
                augmentations that give every image the same size.
            copy_paste_entities: maximum number of pasted wholes, each with its descendants. Images without labels are
                excluded, since their other entities would count as background.
            views: maps the teacher's view (H, W, 3) uint8 RGB to the student's, see `StrongView`; None for one view.

        Raises:
            ValueError: a setting out of range.
        """
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT must be RGB or BGR, got {image_format!r}")
        if min_label_area < 1 or max_labels < 1:
            raise ValueError("INPUT.MIN_LABEL_AREA and INPUT.MAX_LABELS must be at least 1")
        if not 0 <= copy_paste_probability <= 1 or copy_paste_entities < 1:
            raise ValueError("INPUT.COPY_PASTE needs PROBABILITY in [0, 1] and MAX_ENTITIES of at least 1")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.max_labels = max_labels
        self.min_label_area = min_label_area
        self.min_label_score = min_label_score
        self.copy_paste_probability = copy_paste_probability
        self.copy_paste_entities = copy_paste_entities
        self.views = views
        self.skipped = 0
        self._reported: set[str] = set()
        self._donors: Any = None

    @classmethod
    def from_config(cls, cfg: Any, is_train: bool = True) -> dict[str, Any]:
        node = cfg.INPUT
        set_max_image_pixels(node.MAX_IMAGE_PIXELS)
        if is_train:
            augmentations = training_augmentations(node.IMAGE_SIZE, node.MIN_SCALE, node.MAX_SCALE, node.RANDOM_FLIP)
        else:
            augmentations = inference_augmentations(
                node.MIN_SIZE_TEST, node.MAX_SIZE_TEST, CropLayers.from_config(cfg).scale
            )
        return {
            "is_train": is_train,
            "augmentations": augmentations,
            "image_format": node.FORMAT,
            "max_labels": node.MAX_LABELS,
            "min_label_area": node.MIN_LABEL_AREA,
            "min_label_score": node.MIN_LABEL_SCORE,
            "copy_paste_probability": node.COPY_PASTE.PROBABILITY,
            "copy_paste_entities": node.COPY_PASTE.MAX_ENTITIES,
            "views": StrongView(cfg) if is_train and needs_teacher_view(cfg) else None,
        }

    def set_donors(self, dataset: Any) -> None:
        """Set the source of copy-paste: a list or map-style data set of Detectron2 dicts."""
        self._donors = dataset

    def __call__(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any] | None:
        """Map one sample; None if `map_or_raise` raises InputError in training.

        Raises:
            InputError: at test time.
        """
        try:
            return self.map_or_raise(dataset_dict)
        except InputError as error:
            if not self.is_train:
                raise
            self.skipped += 1
            self._report(error)
            return None

    def map_or_raise(self, dataset_dict: Mapping[str, Any]) -> dict[str, Any]:
        """Map one sample.

        Raises:
            InputError: the image cannot be read or differs in size from its labels, or the labels are invalid.
        """
        kept = ("file_name", "image_id", "height", "width")
        sample: dict[str, Any] = {key: dataset_dict[key] for key in kept if key in dataset_dict}
        if self.is_train:
            # a separate generator, seeded first, so that changing one setting does not change all later draws
            rng = np.random.default_rng(np.random.randint(2**31))  # noqa: NPY002  (see the class)
            view = self._view(dataset_dict)
            crop = self._training_crop(dataset_dict, view, rng)
            image, sample["instances"] = crop.image, crop.instances()
            if self.views is not None:
                sample["photo_size"] = view.warp.photo_size()
                sample["image_weak"] = as_tensor(image, self.image_format)
                # drawn last, so that the teacher's view is the same as without views
                image = self.views(image, np.random.default_rng(np.random.randint(2**31)))  # noqa: NPY002
        else:
            inputs = T.AugInput(read_photo(dataset_dict))
            self.augmentations(inputs)
            image = inputs.image
        return {**sample, "image": as_tensor(image, self.image_format)}

    def _training_crop(self, dataset_dict: Mapping[str, Any], view: _View, rng: np.random.Generator) -> LabeledCrop:
        crop = self._sample_labels(view, rng)
        if "annotations" in dataset_dict and rng.random() < self.copy_paste_probability:
            donor = next(self._donor_views(dataset_dict, rng), None)
            if donor is not None:
                crop = paste(crop, self._donor_trees(donor, rng), self.min_label_area)
                if len(crop.masks) > self.max_labels:
                    order = stratified_order(np.array([mask.area for mask in crop.masks]), rng)
                    crop = crop.subset(np.sort(order[: self.max_labels]))
        return crop

    def _view(self, dataset_dict: Mapping[str, Any]) -> _View:
        image = read_photo(dataset_dict)
        size, problems = image.shape[:2], Problems()
        annotations, name = dataset_dict.get("annotations", ()), dataset_dict["file_name"]
        labels = read_labels(annotations, size, self.min_label_score, problems, name)
        if problems and not len(labels.areas):  # without labels, it would be trained as background
            raise InputError(f"an image has no usable label: {problems.summary()}")
        # boxes without masks are common, and are reported when the data set is read
        reasons = problems.counts.keys() - {"no segmentation"}
        if not self._reported >= reasons:
            self._reported |= reasons
            logger.warning("%s; only the first of each reason is logged", problems.summary())
        inputs = T.AugInput(image)
        transforms = self.augmentations(inputs)
        return _View(inputs.image, labels, MaskWarp(transforms, size, inputs.image.shape[:2]))

    def _sample_labels(self, view: _View, rng: np.random.Generator) -> LabeledCrop:
        """Decode labels in the order of `stratified_order`, up to ``max_labels``."""
        visible = np.flatnonzero(view.estimated_areas > 0)
        kept: dict[int, MaskWindow] = {}
        for k in visible[stratified_order(view.estimated_areas[visible], rng)]:
            if len(kept) == self.max_labels:
                break
            mask = view.mask(k)
            if mask.area >= self.min_label_area:
                kept[int(k)] = mask
        return view.crop({k: kept[k] for k in sorted(kept)})

    def _donor_trees(self, donor: _View, rng: np.random.Generator) -> LabeledCrop:
        """Random entities of an image, each with its descendants."""
        wanted = int(rng.integers(1, self.copy_paste_entities + 1))
        largest = MAX_SHARE * donor.image.shape[0] * donor.image.shape[1]
        kept: dict[int, MaskWindow] = {}
        for whole, *parts in trees_in_random_order(donor.labels.ancestors, donor.estimated_areas > 0, rng):
            if wanted == 0:
                break
            mask = donor.mask(whole)
            if not self.min_label_area <= mask.area <= largest:
                continue
            wanted -= 1
            masks = {int(whole): mask, **{int(k): donor.mask(k) for k in parts}}
            kept.update({k: mask for k, mask in masks.items() if mask.area >= self.min_label_area})
        return donor.crop(kept)

    def _donor_views(self, dataset_dict: Mapping[str, Any], rng: np.random.Generator) -> Iterator[_View]:
        """Yield random other images of the data set, in a fixed number of attempts; unusable ones are skipped."""
        if self._donors is None:
            raise RuntimeError(
                "INPUT.COPY_PASTE needs the data set to copy from: use sohes_d2.data.loaders, or call "
                "mapper.set_donors(dataset)"
            )
        for index in rng.integers(len(self._donors), size=_DONOR_ATTEMPTS):
            try:
                donor = self._donors[int(index)]
                if "annotations" in donor and donor["file_name"] != dataset_dict["file_name"]:
                    yield self._view(donor)
            except InputError as error:
                self._report(error)
            except (OSError, ValueError, KeyError) as error:  # an unreadable record of a lazy data set
                self._report(InputError(f"record {index} of the data set cannot be read: {error!r}"))

    def _report(self, error: InputError) -> None:
        message = str(error)
        if message not in self._reported:
            self._reported.add(message)
            logger.warning("skipped: %s", message)


@dataclass
class _View:
    """An augmented image, and its labels before they are decoded."""

    image: np.ndarray
    labels: TrainingLabels
    warp: MaskWarp

    def __post_init__(self) -> None:
        boxes = self.labels.boxes
        self._windows = self.warp.windows(boxes)
        y0, y1, x0, x1 = self._windows.T
        # assumes that masks fill their boxes evenly: accurate enough for the size bins
        self.estimated_areas = (y1 - y0) * (x1 - x0) * (self.labels.areas / (boxes[:, 2] * boxes[:, 3]))

    def mask(self, index: int) -> MaskWindow:
        return self.warp.warp(self.labels.run_ends[index], self._windows[index])

    def crop(self, masks: Mapping[int, MaskWindow]) -> LabeledCrop:
        index = np.fromiter(masks, np.int64)
        return LabeledCrop(self.image, list(masks.values()), self.labels.ancestors[np.ix_(index, index)])

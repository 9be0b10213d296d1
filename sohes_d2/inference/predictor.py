"""Predictor: forests from a trained model, the merge trees of phase 1, or both."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from .. import correction  # noqa: F401  (registers the models)
from ..config.load import load_config
from ..data.training.augmentation import inference_augmentations
from ..devices import choose_device
from ..errors import ConfigError, WeightsError, near_matches
from ..exploration.labeler import PseudoLabeler
from ..modeling.inference import predicted_forest
from ..structures.crops import CropLayers
from ..structures.forest import Forest
from ..structures.images import as_rgb, image_size, set_max_image_pixels
from ..structures.masks import iou_matrix
from ..structures.nms import without_duplicates
from ..weights import PREFIX, local_path
from ..weights.checkpoint import SOHESCheckpointer

ImageLike = Any  # anything that `structures.images.as_rgb` accepts

MASK_SOURCES = ("queries", "trees", "both")
CONFIG_FILE = "config.yaml"
# Weights in a model folder, in order of preference; then the file named in `last_checkpoint`, then FINAL_FILE.
WEIGHTS_FILES = ("model.safetensors", "model.pth")
FINAL_FILE = "model_final.pth"
_LAST_CHECKPOINT = "last_checkpoint"


@dataclass(frozen=True)
class Fusion:
    """Combines the masks of the model's queries and of the merge trees by NMS [D].

    Tree masks keep their scores. A query mask gets the score ``factor`` * max(score * IoU) over all tree masks, since
    tree scores rank masks better than query scores do. Duplicates are then removed by NMS, so that queries only add
    masks that the trees lack. The hierarchy is computed from the coverage of the masks.

    Attributes:
        factor: multiplies the scores of query masks; in [0, 1].
        nms_threshold: of two masks with a higher IoU, the lower-scored one is removed; in (0, 1].
        max_masks: maximum number of masks per photo; the best-scored are kept.
        min_score: masks with a lower score are removed; in [0, 1].
        theta_cover, max_child_area: see `Forest.from_masks`.
    """

    factor: float = 0.5
    nms_threshold: float = 0.95
    max_masks: int = 1000
    min_score: float = 0.0
    theta_cover: float = 0.9
    max_child_area: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.factor <= 1:
            raise ConfigError(f"TEST.FUSION.FACTOR must be in [0, 1], got {self.factor}")
        if not 0 < self.nms_threshold <= 1:
            raise ConfigError(f"TEST.FUSION.NMS_THRESHOLD must be in (0, 1], got {self.nms_threshold}")

    @classmethod
    def from_config(cls, cfg: Any) -> Fusion:
        """Read ``cfg.TEST`` and ``cfg.MODEL.ANCESTOR_HEAD``.

        Raises:
            ConfigError: a setting out of range.
        """
        return cls(
            cfg.TEST.FUSION.FACTOR,
            cfg.TEST.FUSION.NMS_THRESHOLD,
            cfg.TEST.DETECTIONS_PER_IMAGE,
            cfg.TEST.MIN_SCORE,
            cfg.TEST.THETA_COVER,
            cfg.MODEL.ANCESTOR_HEAD.MAX_CHILD_AREA,
        )

    def __call__(self, trees: Forest, queries: Forest) -> Forest:
        """Return the combined forest of one photo, by descending score."""
        masks = [*trees.masks, *queries.masks]
        supports = np.asarray(trees.scores)[:, None] * iou_matrix(trees.masks, queries.masks)
        scores = np.concatenate([trees.scores, self.factor * supports.max(0, initial=0)])
        order = without_duplicates(masks, scores, self.nms_threshold)[: self.max_masks]
        kept = order[scores[order] >= self.min_score].tolist()
        sources = [*trees.sources, *queries.sources]
        return Forest.from_masks(
            [masks[k] for k in kept],
            trees.image_size,
            self.theta_cover,
            self.max_child_area,
            scores=scores[kept].astype(np.float32),
            sources=[sources[k] for k in kept],
        )


class SOHESPredictor:
    """Predicts the entity forests of photos with a trained model.

    >>> predictor = SOHESPredictor("output/instruction")
    >>> forest = predictor("photo.jpg")

    TEST.MASKS_FROM selects the masks: those of the model's queries, of the merge trees of phase 1 (EXPLORATION), or
    both, see `Fusion`.

    Results do not depend on the other photos in a batch: only photos of equal size are batched, since padding would
    change the input.

    Attributes:
        cfg: the frozen config of the model; MODEL.WEIGHTS names the loaded file.
        model: in evaluation mode, on ``device``.
        device: device of the model.
    """

    def __init__(
        self,
        model: CfgNode | str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str | torch.device | None = None,
    ):
        """
        Args:
            model: a config, ``shipped:NAME`` (see `sohes_d2.weights.shipped_files`), or a folder with ``config.yaml``
                and weights, such as OUTPUT_DIR of a training. The first of ``model.safetensors``, ``model.pth``, the
                file named by ``last_checkpoint``, and ``model_final.pth`` is loaded.
            weights: a file to load instead; for a config, MODEL.WEIGHTS by default.
            device: "cpu", "cuda", "cuda:1" or "mps"; default: that of the config, or the CPU if it is not available.

        Raises:
            ConfigError: the config cannot be used, or the requested device is not available.
            WeightsError: weights that are missing, damaged, of another model, or not readable without running code.
        """
        if isinstance(model, CfgNode):
            cfg, default_weights = model.clone(), model.MODEL.WEIGHTS
        else:
            cfg, default_weights = load_model_folder(model, find_weights=weights is None)
        cfg.defrost()
        cfg.MODEL.WEIGHTS = os.fspath(weights) if weights is not None else default_weights
        if not cfg.MODEL.WEIGHTS:
            raise WeightsError(
                "a predictor needs the weights of a trained model: set MODEL.WEIGHTS to a .pth or .safetensors file, "
                "or pass the output folder of a training"
            )
        cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, device)
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT must be RGB or BGR, got {cfg.INPUT.FORMAT!r}")
        source = cfg.TEST.MASKS_FROM
        if source not in MASK_SOURCES:
            hint = near_matches(str(source), MASK_SOURCES)
            raise ConfigError(f"TEST.MASKS_FROM {source!r} is not one of {', '.join(MASK_SOURCES)}.{hint}")
        cfg.freeze()
        set_max_image_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
        self.cfg = cfg
        self._trees = None if source == "queries" else PseudoLabeler.from_cfg(cfg)
        self._fuse = Fusion.from_config(cfg)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).eval()
        SOHESCheckpointer(self.model, max_unmatched=0.0).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        self._augmentations = T.AugmentationList(
            inference_augmentations(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, CropLayers.from_config(cfg).scale)
        )

    def __call__(self, image: ImageLike) -> Forest:
        """Predict the forest of one photo at its original size.

        Args:
            image: a path, Pillow image, array or tensor, see `as_rgb`.

        Raises:
            ImageReadError: the file cannot be read.
            ValueError: not an image.
        """
        return self.predict([image])[0]

    def predict(self, images: Iterable[ImageLike], batch_size: int = 1) -> list[Forest]:
        """Predict the forests of several photos, in order.

        Files are read batch by batch: all forests are kept in memory, but only one batch of photos.

        Args:
            images: see `__call__`.
            batch_size: largest number of photos per batch; photos of different sizes go to different batches.

        Raises:
            ImageReadError, ValueError: see `__call__`; ValueError also for a ``batch_size`` below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        images = [image if isinstance(image, (str, os.PathLike)) else as_rgb(image) for image in images]
        forests: dict[int, Forest] = {}
        # sizes of files are read from their headers
        sizes = [image.shape[:2] if isinstance(image, np.ndarray) else image_size(image) for image in images]
        for members in _batches_of_one_size(sizes, batch_size):
            forests.update(zip(members, self._of_photos([as_rgb(images[k]) for k in members])))
        return [forests[k] for k in range(len(images))]

    def _of_photos(self, photos: list[np.ndarray]) -> list[Forest]:
        """The forests of (H, W, 3) uint8 RGB photos of one size."""
        trees = [self._trees.generate(photo) for photo in photos] if self._trees else []
        if self.cfg.TEST.MASKS_FROM == "trees":
            return [forest.filter(self.cfg.TEST.MIN_SCORE) for forest in trees]
        with torch.no_grad():
            outputs = self.model([self.prepare(photo) for photo in photos])
        queries = [predicted_forest(output, photo.shape[:2]) for output, photo in zip(outputs, photos)]
        return [self._fuse(*pair) for pair in zip(trees, queries)] if trees else queries

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """Prepare the model's input for a photo, resized as by `PseudoLabelDatasetMapper` in evaluation.

        Args:
            image: (H, W, 3) uint8 RGB.

        Returns:
            ``image``, (3, h, w) uint8 in the channel order of INPUT.FORMAT, and ``height``, ``width`` of the photo.
        """
        inputs = T.AugInput(image)
        self._augmentations(inputs)
        pixels = inputs.image if self.cfg.INPUT.FORMAT == "RGB" else inputs.image[:, :, ::-1]
        tensor: Tensor = torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))
        return {"image": tensor, "height": image.shape[0], "width": image.shape[1]}


def load_model_folder(
    folder: str | os.PathLike[str], find_weights: bool = True, options: Sequence[str] = ()
) -> tuple[CfgNode, str]:
    """Load the config of a model folder or of ``shipped:NAME``, and find its weights.

    Args:
        folder: the folder, or ``shipped:NAME``.
        find_weights: whether to search the weights; if not, their path is "".
        options: alternating keys and values that override the config.

    Returns:
        The config, and the path of the weights.

    Raises:
        ConfigError: no such folder, or no usable config in it.
        WeightsError: no weights in it, or no such weights are shipped with the package.
    """
    folder = os.fspath(folder)
    if folder.startswith(PREFIX):
        folder = os.path.dirname(local_path(folder))
    config = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(config):
        what = "has no" if os.path.isdir(folder) else "is not a folder with a"
        raise ConfigError(f"{folder!r} {what} {CONFIG_FILE}; pass the output folder of a training, or a config")
    return load_config(config, options), _find_weights(folder) if find_weights else ""


def _find_weights(folder: str) -> str:
    names = list(WEIGHTS_FILES)
    try:
        with open(os.path.join(folder, _LAST_CHECKPOINT), encoding="utf-8") as file:
            # only the base name: the file must not point outside the folder
            names.append(os.path.basename(file.read().strip()))
    except FileNotFoundError:
        pass  # folders of published models have none
    for name in [*names, FINAL_FILE]:
        path = os.path.join(folder, name)
        if name and os.path.isfile(path):
            return path
    raise WeightsError(
        f"{folder!r} has no weights: none of {', '.join([*WEIGHTS_FILES, _LAST_CHECKPOINT, FINAL_FILE])} found"
    )


def _batches_of_one_size(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Group positions into batches of equal image size, ordered by their first members."""
    positions = defaultdict(list)
    for k, size in enumerate(sizes):
        positions[size].append(k)
    return sorted(same[k : k + batch_size] for same in positions.values() for k in range(0, len(same), batch_size))

"""Predictor: forests of photos from a trained model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
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
from ..errors import ConfigError, WeightsError
from ..modeling.inference import predicted_forest
from ..structures.crops import CropLayers
from ..structures.forest import Forest
from ..structures.images import PathLike, as_rgb, image_size, read_image, set_max_image_pixels
from ..weights import PREFIX, local_path
from ..weights.checkpoint import SOHESCheckpointer

ImageLike = Any  # as `structures.images.as_rgb` takes it

CONFIG_FILE = "config.yaml"
# In a model's folder, in this order; the file that `last_checkpoint` names comes before the last one.
WEIGHTS_FILES = ("model.safetensors", "model.pth")
FINAL_FILE = "model_final.pth"
_LAST_CHECKPOINT = "last_checkpoint"


class SOHESPredictor:
    """Finds the entities of photos with a trained model.

    >>> predictor = SOHESPredictor("output/instruction")
    >>> forest = predictor("photo.jpg")

    Results do not depend on what else is in the batch: only photos of one size share one, since padding would change
    what the model sees.

    Attributes:
        cfg: the frozen config that the model was built with; MODEL.WEIGHTS names the file that was loaded.
        model: in evaluation mode, on ``device``.
        device: where it runs.
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
                and weights, such as OUTPUT_DIR of a training. Of several files with weights, ``model.safetensors``,
                ``model.pth``, the one that ``last_checkpoint`` names and ``model_final.pth`` are taken in this order.
            weights: a file to load instead; for a config, MODEL.WEIGHTS by default.
            device: "cpu", "cuda", "cuda:1" or "mps"; by default that of the config, or the CPU if that one is not
                there.

        Raises:
            ConfigError: the config cannot be used, or a device was asked for that is not there.
            WeightsError: no weights, or those of another model.
            WeightsError: weights that are damaged, or could be read only by running code from them.
        """
        if isinstance(model, CfgNode):
            cfg, found = model.clone(), model.MODEL.WEIGHTS
        else:
            cfg, found = load_model_folder(model, find_weights=weights is None)
        cfg.defrost()
        cfg.MODEL.WEIGHTS = os.fspath(weights) if weights is not None else found
        if not cfg.MODEL.WEIGHTS:
            raise WeightsError(
                "a predictor needs the weights of a trained model: set MODEL.WEIGHTS to a .pth or .safetensors file, "
                "or pass the folder that a training wrote"
            )
        cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, device)
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ConfigError(f"INPUT.FORMAT must be RGB or BGR, got {cfg.INPUT.FORMAT!r}")
        cfg.freeze()
        set_max_image_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
        self.cfg = cfg
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model = build_model(cfg).eval()
        SOHESCheckpointer(self.model, max_unmatched=0.0).load(cfg.MODEL.WEIGHTS, checkpointables=[])
        self._augmentations = T.AugmentationList(
            inference_augmentations(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, CropLayers.from_config(cfg).scale)
        )

    def __call__(self, image: ImageLike) -> Forest:
        """The forest of one photo, at its own size.

        Args:
            image: a path, Pillow image, array or tensor, see `as_rgb`.

        Raises:
            ImageReadError: the file cannot be read.
            ValueError: something that is no image.
        """
        return self.predict([image])[0]

    def predict(self, images: Iterable[ImageLike], batch_size: int = 1) -> list[Forest]:
        """The forests of some photos, in their order.

        Files are read batch by batch, so that a long list costs no memory beside its forests.

        Args:
            images: as for a call.
            batch_size: photos at once, of equal size; the others go in batches of their own.

        Raises:
            ImageReadError, ValueError: as for a call.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        images = [image if isinstance(image, (str, os.PathLike)) else as_rgb(image) for image in images]
        forests: dict[int, Forest] = {}
        for members in _batches_of_one_size([_size(image) for image in images], batch_size):
            inputs = [self.prepare(_pixels(images[k])) for k in members]
            with torch.no_grad():
                outputs = self.model(inputs)
            for k, one_input, output in zip(members, inputs, outputs):
                forests[k] = predicted_forest(output, (one_input["height"], one_input["width"]))
        return [forests[k] for k in range(len(images))]

    def prepare(self, image: np.ndarray) -> dict[str, Any]:
        """The model's input for a photo, resized as in evaluation (`PseudoLabelDatasetMapper`, not for training).

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


def load_model_folder(folder: str | os.PathLike[str], find_weights: bool = True) -> tuple[CfgNode, str]:
    """The config of a model's folder or of ``shipped:NAME``, and the path of its weights ("" if not looked for).

    Raises:
        ConfigError: no such folder, no config in it, or one that cannot be used.
        WeightsError: no weights in it.
        WeightsError: no such weights come with the package.
    """
    folder = os.fspath(folder)
    if folder.startswith(PREFIX):
        folder = os.path.dirname(local_path(folder))
    config = os.path.join(folder, CONFIG_FILE)
    if not os.path.isfile(config):
        what = "has no" if os.path.isdir(folder) else "is no folder with a"
        raise ConfigError(f"{folder!r} {what} {CONFIG_FILE}; pass the folder that a training wrote, or a config")
    return load_config(config), _find_weights(folder) if find_weights else ""


def _find_weights(folder: str) -> str:
    names = list(WEIGHTS_FILES)
    try:
        with open(os.path.join(folder, _LAST_CHECKPOINT), encoding="utf-8") as file:
            # the last part, since a folder's file must not lead out of the folder
            names.append(os.path.basename(file.read().strip()))
    except FileNotFoundError:
        pass  # a folder to hand on has none
    for name in [*names, FINAL_FILE]:
        path = os.path.join(folder, name)
        if name and os.path.isfile(path):
            return path
    raise WeightsError(
        f"{folder!r} has no weights: none of {', '.join([*WEIGHTS_FILES, _LAST_CHECKPOINT, FINAL_FILE])} is there"
    )


def _size(image: PathLike | np.ndarray) -> tuple[int, int]:
    """(H, W), from the header of a file."""
    return image.shape[:2] if isinstance(image, np.ndarray) else image_size(image)


def _pixels(image: PathLike | np.ndarray) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else read_image(image)


def _batches_of_one_size(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Positions in batches of equal size; batches are in the order of their first members."""
    batches: list[list[int]] = []
    open_batch: dict[tuple[int, int], list[int]] = {}
    for k, size in enumerate(sizes):
        batch = open_batch.get(size)
        if batch is None or len(batch) == batch_size:
            batch = open_batch[size] = []
            batches.append(batch)
        batch.append(k)
    return batches

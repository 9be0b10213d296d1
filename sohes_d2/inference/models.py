"""`sohes_d2.load`: phase 1 or a trained model by name, with one interface."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .. import compat
from ..config.load import load_config
from ..data.sources import read_inputs
from ..devices import choose_device
from ..errors import ConfigError, ImageReadError, near_matches
from ..exploration.features import FEATURE_EXTRACTORS
from ..exploration.labeler import PseudoLabeler
from ..structures.entity import Selection
from ..structures.forest import Forest
from ..structures.hierarchy import Rules
from ..structures.images import as_rgb
from ..weights import PREFIX, TORCHVISION_PREFIX, shipped_files

if TYPE_CHECKING:
    from .predictor import SOHESPredictor

logger = logging.getLogger(__name__)

# An image accepted by `structures.images.as_rgb`, or several: a folder, a glob, a sequence or an iterator of images.
Images = Any
CONFIG_FILE = "config.yaml"
HUB_WEIGHTS = "model.safetensors"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class EntityModel:
    """Phase 1 or a trained model as a function from images to forests.

    >>> model = sohes_d2.load("joint")
    >>> for entity in model("photo.jpg", entities=20):
    ...     entity.name, entity.box, entity.mask

    Attributes:
        name: the name passed to `load`.
        cfg: the config that it was built with.
        source: the underlying `PseudoLabeler` or `SOHESPredictor`.
        rules: thresholds of the displayed hierarchy, EXPLORATION.HIERARCHY of ``cfg``.
    """

    def __init__(self, name: str, cfg: Any, source: PseudoLabeler | SOHESPredictor):
        self.name = name
        self.cfg = cfg
        self.source = source
        self.rules = Rules.from_config(cfg.EXPLORATION.HIERARCHY)
        self._find: Callable[[np.ndarray], Forest] = source.generate if isinstance(source, PseudoLabeler) else source

    def __repr__(self) -> str:
        return f"EntityModel({self.name!r}, {type(self.source).__name__} on {self.cfg.MODEL.DEVICE})"

    def __call__(
        self,
        images: Images,
        entities: int | None = None,
        min_score: float = 0.0,
        max_depth: int | None = None,
    ) -> Forest | Iterator[Forest]:
        """Find the forest of one image, or lazily the forests of several.

        Args:
            images: a path, Pillow image, array or tensor, see `as_rgb`; or several: a folder (with sub-folders), a
                glob, or an iterable of these single images. Unreadable files of a folder or glob are skipped with a
                warning.
            entities: maximum number of non-overlapping masks to select (`Forest.select`); None or 0: all masks.
            min_score: masks with a lower score are dropped; in [0, 1].
            max_depth: masks deeper than this are dropped (0: wholes only); None: no limit. With ``entities``, the
                selected masks are the wholes, and their parts are included only if ``max_depth`` is positive.

        Returns:
            A forest with ``photo``, ``file_name`` and ``rules``, or an iterator of forests; images are read as the
            iterator advances.

        Raises:
            ImageReadError: a file that cannot be read.
            InputError: no image in a folder or at a glob.
            ValueError: not an image, or an argument out of range.
        """
        select = Selection(entities or 0, min_score, max_depth, parts=bool(max_depth))

        def find(image: Any) -> Forest:
            return select(self._forest(image))

        if isinstance(images, (str, os.PathLike)):
            path = os.fspath(images)
            if os.path.isdir(path) or (not os.path.exists(path) and glob.has_magic(path)):
                return self._of_files([item.path for item in read_inputs([path])], find)
            return find(path)
        if _is_single(images):
            return find(images)
        return (find(image) for image in images)

    def _forest(self, image: Any) -> Forest:
        photo = as_rgb(image)
        forest = self._find(photo)
        forest.photo = photo
        forest.file_name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        forest.rules = self.rules
        return forest

    @staticmethod
    def _of_files(paths: Iterable[str], find: Callable[[str], Forest]) -> Iterator[Forest]:
        for path in paths:
            try:
                yield find(path)
            except ImageReadError as error:
                logger.warning("skipped: %s", error)


def load(name: str | os.PathLike[str], *, device: str | None = None, options: Iterable[str] = ()) -> EntityModel:
    """Load an entity segmenter by name.

    ==========================  =====================================================================================
    name                        segmenter
    ==========================  =====================================================================================
    ``joint``                   phase 1 with colour, texture and the small ViT of this package; needs no download
    ``color_texture``           phase 1 without any weights
    ``auto``                    phase 1 with DINO ViT-B/8 if its weights are cached or downloadable, else ``joint``
    a timm name, or             phase 1 with features of that network, e.g. ``vit_small_patch14_dinov2.lvd142m`` or
    ``torchvision/NAME``        ``torchvision/resnet50``
    ``shipped:NAME``            weights in this package: a trained model (``shipped:sohes_mini8``), or phase 1 with a
                                backbone (``shipped:vit_mini8``)
    a folder                    a trained model: ``config.yaml`` and weights, such as OUTPUT_DIR of a training
    ``ORG/NAME``                a trained model on the Hugging Face hub, with ``model.safetensors``
    ==========================  =====================================================================================

    Args:
        name: one of the names above.
        device: "cpu", "cuda", "cuda:1" or "mps"; default: that of the config, or the CPU if it is not available.
        options: alternating config keys and values, such as ("TEST.CROPS.LAYERS", "1").

    Raises:
        ConfigError: an unknown name, key or device.
        WeightsError: weights that are not available or belong to another model.
    """
    name = os.fspath(name)
    options = list(options)
    if os.path.isdir(name):
        return _trained(name, name, device, options)
    if name.startswith(PREFIX):
        shipped = name[len(PREFIX) :]
        file = shipped_files().get(shipped)
        if file is None:
            known = [PREFIX + other for other in shipped_files()]
            raise ConfigError(f"no model {name!r} is shipped with this package; it has {', '.join(sorted(known))}")
        if (file.parent / CONFIG_FILE).is_file():
            return _trained(name, name, device, options)
        return _phase_one(name, "vit_file", device, ["EXPLORATION.FEATURES.WEIGHTS", name, *options])
    if _is_extractor(name):
        return _phase_one(name, name, device, options)
    if _HUB_NAME.fullmatch(name):
        return _trained(name, _hub_folder(name), device, options)
    known = [*dict(FEATURE_EXTRACTORS), *(PREFIX + other for other in shipped_files())]
    raise ConfigError(
        f"{name!r} cannot be loaded: it is not a folder, ORG/NAME on the hub, a timm model, or "
        f"one of {', '.join(known)}.{near_matches(name, known)}"
    )


def _phase_one(name: str, features: str, device: str | None, options: list[str]) -> EntityModel:
    cfg = load_config("", ["EXPLORATION.FEATURES.NAME", features, *options])
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE, device)
    cfg.freeze()
    return EntityModel(name, cfg, PseudoLabeler.from_cfg(cfg))


def _trained(name: str, folder: str, device: str | None, options: list[str]) -> EntityModel:
    compat.require()
    from .predictor import SOHESPredictor, load_model_folder

    cfg, weights = load_model_folder(folder, options=options)
    predictor = SOHESPredictor(cfg, weights=weights, device=device)
    return EntityModel(name, predictor.cfg, predictor)


def _is_extractor(name: str) -> bool:
    if name in FEATURE_EXTRACTORS or name.startswith(TORCHVISION_PREFIX):
        return True
    import timm  # slow to import, and not needed for the names above

    return timm.is_model(name.partition(".")[0])


def _hub_folder(name: str) -> str:
    """Download only a model's config and safetensors from the hub, since other files could contain code.

    Raises:
        ConfigError: no such repository, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return snapshot_download(name, allow_patterns=[CONFIG_FILE, HUB_WEIGHTS])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{name!r} is not a local folder and cannot be downloaded from the hub: {reason}") from error


def _is_single(images: Any) -> bool:
    """Whether this is a single image: an array or tensor of up to three axes, or a Pillow image."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim <= 3
    return not isinstance(images, Iterable)

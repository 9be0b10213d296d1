"""Construction of feature extractors from the config."""

from __future__ import annotations

import difflib
import logging

import timm
import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from ...devices import choose_device
from ...weights import TORCHVISION_PREFIX, hub_cached_file, hub_reachable
from .base import FEATURE_EXTRACTORS, FeatureExtractor
from .cnn import CNNExtractor
from .color_texture import joint
from .vit import ViTExtractor

logger = logging.getLogger(__name__)

AUTO_MODEL = "vit_base_patch8_224.dino"  # the backbone of SOHES


def build_feature_extractor(cfg) -> FeatureExtractor:
    """Build the extractor of ``cfg.EXPLORATION.FEATURES``.

    It runs on ``cfg.MODEL.DEVICE``, or on the CPU if that is not available: Detectron2's default is "cuda".

    ``NAME`` is, in this order: a name in :data:`FEATURE_EXTRACTORS` ("auto" and "color_texture" among them),
    "torchvision/" and a model of torchvision, or a model of timm. A plain ViT gives a :class:`~.vit.ViTExtractor`,
    any other network a :class:`~.cnn.CNNExtractor`.

    Raises:
        ValueError: an unknown name, or options that do not suit it.
        WeightsError: the weights are unavailable or do not match.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = choose_device(cfg.MODEL.DEVICE)
    name = cfg.EXPLORATION.FEATURES.NAME
    if name in FEATURE_EXTRACTORS:
        return FEATURE_EXTRACTORS.get(name)(cfg)
    kind = ViTExtractor if not name.startswith(TORCHVISION_PREFIX) and _is_plain_vit(name) else CNNExtractor
    return kind(**kind.from_config(cfg))


def extractor_by_name(name: str) -> FeatureExtractor:
    """Build the extractor named ``EXPLORATION.FEATURES.NAME``, with the other keys at their defaults.

    Raises:
        ValueError, WeightsError: as `build_feature_extractor`.
    """
    from ...config.load import load_config

    return build_feature_extractor(load_config("", ["EXPLORATION.FEATURES.NAME", name]))


@FEATURE_EXTRACTORS.register()
def auto(cfg) -> FeatureExtractor:
    """DINO ViT-B/8 when its weights are given, cached or reachable (decided within seconds), else ``joint``."""
    weights = cfg.EXPLORATION.FEATURES.WEIGHTS
    if weights or hub_cached_file(AUTO_MODEL) or hub_reachable(AUTO_MODEL, timeout=3.0):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.EXPLORATION.FEATURES.NAME = AUTO_MODEL
        return build_feature_extractor(cfg)
    logger.warning(
        "NO DINO WEIGHTS: %s is neither cached nor reachable, so features fall back to joint: colour and texture, "
        "with the small ViT that comes with this package. For the method of the paper connect to the internet, or pass "
        "its file: --weights FILE (EXPLORATION.FEATURES.WEIGHTS FILE). To silence this, choose NAME joint.",
        AUTO_MODEL,
    )
    return joint(cfg)


def _is_plain_vit(name: str) -> bool:
    """Whether timm's ``name`` is a ViT of one resolution, determined from its class without creating weights."""
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture) or (tag and not timm.is_model_pretrained(name)):
        known = [*dict(FEATURE_EXTRACTORS), *timm.list_models(), *timm.list_pretrained()]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else ""
        raise ValueError(
            f"EXPLORATION.FEATURES.NAME {name!r} is neither registered ({', '.join(dict(FEATURE_EXTRACTORS))}) nor a "
            f"model of timm {timm.__version__}; models of torchvision are named 'torchvision/NAME'.{hint}"
        )
    with torch.device("meta"):
        return isinstance(timm.create_model(architecture, num_classes=0), (VisionTransformer, Eva))

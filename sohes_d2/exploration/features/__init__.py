"""Feature extractors of phase 1."""

from .base import FEATURE_EXTRACTORS, FeatureExtractor
from .build import build_feature_extractor, extractor_by_name
from .color_texture import ColorTextureExtractor, JointExtractor
from .vit import load_vit_file

__all__ = [
    "FEATURE_EXTRACTORS",
    "ColorTextureExtractor",
    "FeatureExtractor",
    "JointExtractor",
    "build_feature_extractor",
    "extractor_by_name",
    "load_vit_file",
]

"""Feature extractors of phase 1: what the clustering sees of an image."""

from .base import FEATURE_EXTRACTORS, FeatureExtractor
from .build import build_feature_extractor
from .color_texture import ColorTextureExtractor

__all__ = ["FEATURE_EXTRACTORS", "ColorTextureExtractor", "FeatureExtractor", "build_feature_extractor"]

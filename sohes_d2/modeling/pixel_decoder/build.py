"""The registry of pixel decoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fvcore.common.registry import Registry
from torch import nn

from detectron2.layers import ShapeSpec

PIXEL_DECODER_REGISTRY = Registry("PIXEL_DECODER")
PIXEL_DECODER_REGISTRY.__doc__ = """
Pixel decoders, called with ``(cfg, input_shape)``, the channels and strides of the backbone's maps. Such a module has a
method ``forward_features(features)``; see `MSDeformAttnPixelDecoder` for what it takes and returns.
"""


def build_pixel_decoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build the decoder that ``MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME`` names."""
    return PIXEL_DECODER_REGISTRY.get(cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME)(cfg, input_shape)

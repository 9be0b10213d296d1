"""The registry of transformer decoders."""

from __future__ import annotations

from typing import Any

from fvcore.common.registry import Registry
from torch import nn

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders, called with ``(cfg, in_channels)``, the channels of the multi-scale features. Such a module's
forward takes ``(multi_scale_features, mask_features)``; see `MultiScaleMaskedTransformerDecoder` for both and for what
it returns.
"""


def build_transformer_decoder(cfg: Any, in_channels: int) -> nn.Module:
    """Build the decoder that ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` names."""
    return TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)(cfg, in_channels)

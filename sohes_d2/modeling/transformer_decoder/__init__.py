"""Transformer decoders: from image features to one mask, one score and one place in the hierarchy per query."""

from .build import TRANSFORMER_DECODER_REGISTRY, build_transformer_decoder
from .masked_decoder import MultiScaleMaskedTransformerDecoder

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "MultiScaleMaskedTransformerDecoder", "build_transformer_decoder"]

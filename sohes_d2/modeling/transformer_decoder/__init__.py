"""Transformer decoders: from image features to one mask, one score and one place in the hierarchy per query."""

from .masked_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder, build_transformer_decoder

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "MultiScaleMaskedTransformerDecoder", "build_transformer_decoder"]

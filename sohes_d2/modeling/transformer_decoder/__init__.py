"""Transformer decoders: from image features to a mask, a score and ancestor embeddings per query."""

from .masked_decoder import TRANSFORMER_DECODER_REGISTRY, MultiScaleMaskedTransformerDecoder, build_transformer_decoder

__all__ = ["TRANSFORMER_DECODER_REGISTRY", "MultiScaleMaskedTransformerDecoder", "build_transformer_decoder"]

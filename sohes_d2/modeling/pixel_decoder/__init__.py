"""Pixel decoders: from the backbone's feature maps to per-pixel embeddings and multi-scale maps for the queries."""

from .msdeform import PIXEL_DECODER_REGISTRY, MSDeformAttnPixelDecoder, build_pixel_decoder

__all__ = ["PIXEL_DECODER_REGISTRY", "MSDeformAttnPixelDecoder", "build_pixel_decoder"]

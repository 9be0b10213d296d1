"""Backbones: a plain ViT of timm whose tokens become maps of strides 4, 8, 16 and 32, by a ViT-Adapter or a pyramid."""

from .vit import ViT
from .vit_adapter import ViTAdapter
from .vit_pyramid import ViTPyramid

__all__ = ["ViT", "ViTAdapter", "ViTPyramid"]

"""Backbones: a plain ViT of timm whose tokens become maps of strides 4, 8, 16 and 32, by a ViT-Adapter or a pyramid."""

from .vit import ViT
from .vit_adapter import ViTAdapter, build_vit_adapter_backbone
from .vit_pyramid import ViTPyramid, build_vit_pyramid_backbone

__all__ = ["ViT", "ViTAdapter", "ViTPyramid", "build_vit_adapter_backbone", "build_vit_pyramid_backbone"]

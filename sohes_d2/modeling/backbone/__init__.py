"""Backbones: a plain ViT of timm in a ViT-Adapter, which converts its tokens to maps of strides 4, 8, 16 and 32."""

from .vit import ViT
from .vit_adapter import ViTAdapter, build_vit_adapter_backbone

__all__ = ["ViT", "ViTAdapter", "build_vit_adapter_backbone"]

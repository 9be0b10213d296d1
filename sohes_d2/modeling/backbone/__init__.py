"""Backbones: a plain ViT of timm inside a ViT-Adapter, which turns its tokens into maps of strides 4, 8, 16 and 32."""

from .vit import ViT
from .vit_adapter import ViTAdapter, build_vit_adapter_backbone

__all__ = ["ViT", "ViTAdapter", "build_vit_adapter_backbone"]

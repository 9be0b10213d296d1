"""Phase 2, self-instruction: the network that learns from pseudo-labels (SOHES, section 3.2).

Importing it enters the backbone, the head and the meta-architecture in Detectron2's registries.
"""

from .backbone import ViTAdapter, build_vit_adapter_backbone
from .head import EntityHead
from .meta_arch import SOHES

__all__ = ["SOHES", "EntityHead", "ViTAdapter", "build_vit_adapter_backbone"]

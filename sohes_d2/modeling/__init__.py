"""Phase 2, self-instruction: the network that learns from pseudo-labels (SOHES, section 3.2).

Importing it enters the backbone, the head and the meta-architecture in Detectron2's registries.
"""

from .. import compat

compat.require()

from .backbone import ViTAdapter, build_vit_adapter_backbone  # noqa: E402  (they need Detectron2)
from .meta_arch import SOHES, EntityHead  # noqa: E402

__all__ = ["SOHES", "EntityHead", "ViTAdapter", "build_vit_adapter_backbone"]

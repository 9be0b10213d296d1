"""Phase 2, self-instruction: the network that is trained on pseudo-labels (SOHES, section 3.2).

Importing it registers the backbones, the head and the meta-architecture with Detectron2.
"""

from .. import compat

compat.require()

from .backbone import (  # noqa: E402  (they need Detectron2)
    ViTAdapter,
    ViTPyramid,
    build_vit_adapter_backbone,
    build_vit_pyramid_backbone,
)
from .meta_arch import SOHES, EntityHead  # noqa: E402

__all__ = [
    "SOHES",
    "EntityHead",
    "ViTAdapter",
    "ViTPyramid",
    "build_vit_adapter_backbone",
    "build_vit_pyramid_backbone",
]

"""Phase 2, self-instruction: the network that is trained on pseudo-labels (SOHES, section 3.2).

Importing it registers the backbones, the head and the meta-architecture with Detectron2.
"""

from .. import compat

compat.require()

from .backbone import ViTAdapter, ViTPyramid  # noqa: E402  (they need Detectron2)
from .meta_arch import SOHES, EntityHead  # noqa: E402

__all__ = ["SOHES", "EntityHead", "ViTAdapter", "ViTPyramid"]

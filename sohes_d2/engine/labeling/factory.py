"""Building labelers from a config, here and in other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode

from ...exploration.labeler import PseudoLabeler
from ...structures.images import set_max_image_pixels


@dataclass(frozen=True)
class CfgLabelerFactory:
    """Builds the labeler of a config; picklable, so that worker processes can build theirs.

    Attributes:
        cfg: a config with the keys of `add_sohes_config`.
    """

    cfg: CfgNode

    def __call__(self, with_extractor: bool) -> PseudoLabeler:
        """A labeler, without its extractor and the weights of it where only the CPU steps are wanted."""
        set_max_image_pixels(self.cfg.INPUT.MAX_IMAGE_PIXELS)
        if with_extractor:
            return PseudoLabeler.from_cfg(self.cfg)
        return PseudoLabeler.from_cfg(self.cfg, extractor=None)

    def pinned(self, labeler: Any) -> CfgLabelerFactory:
        """A factory that names the extractor of ``labeler``: "auto" depends on caches and networks of a moment."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.EXPLORATION.FEATURES.NAME = labeler.extractor.name
        cfg.freeze()
        return CfgLabelerFactory(cfg)

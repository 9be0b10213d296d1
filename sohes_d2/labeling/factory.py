"""Construction of labelers from a config, in this process and in workers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..exploration.labeler import PseudoLabeler
from ..structures.hierarchy import Rules
from ..structures.images import set_max_image_pixels
from ..structures.selection import Selection

if TYPE_CHECKING:
    from yacs.config import CfgNode


@dataclass(frozen=True)
class CfgLabelerFactory:
    """Builds the labeler of a config; picklable, for worker processes.

    Attributes:
        cfg: a config with the keys of phase 1.
        selection: which masks are kept; None: all.
    """

    cfg: CfgNode
    selection: Selection | None = None

    def __call__(self, with_extractor: bool) -> PseudoLabeler:
        """Build a labeler; for the CPU steps alone, without extractor and its weights."""
        set_max_image_pixels(self.cfg.INPUT.MAX_IMAGE_PIXELS)
        labeler = (
            PseudoLabeler.from_cfg(self.cfg) if with_extractor else PseudoLabeler.from_cfg(self.cfg, extractor=None)
        )
        if self.selection:
            rules = Rules.from_config(self.cfg.EXPLORATION.HIERARCHY)
            labeler.selection = replace(self.selection, rules=rules)
        return labeler

    def pinned(self, labeler: Any) -> CfgLabelerFactory:
        """A factory with the extractor that ``labeler`` uses; "auto" could resolve differently in another process."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.EXPLORATION.FEATURES.NAME = labeler.extractor.name
        cfg.freeze()
        return CfgLabelerFactory(cfg, self.selection)

"""Config keys of SOHES-D2, with meaning, unit and source of the default; one module per phase.

Sources: [P] the SOHES paper, [H] HASSOD, [U] UnSAM, [M] Mask2Former, [A] ViT-Adapter, [V] ViTDet, [S] Segment
Anything, [D] our decision.

An empty WEIGHTS loads the published weights of the NAME beside it, "random" loads none; other empty paths mean no file.
"""

from __future__ import annotations

from typing import Any

from .correction import add_correction_config
from .exploration import add_exploration_config, exploration_cfg
from .model import add_model_config
from .pretraining import add_pretraining_config

__all__ = [
    "add_correction_config",
    "add_exploration_config",
    "add_model_config",
    "add_pretraining_config",
    "add_sohes_config",
    "exploration_cfg",
]


def add_sohes_config(cfg: Any) -> None:
    """Add the keys of all phases to a Detectron2 config (``detectron2.config.get_cfg()``), in place."""
    add_exploration_config(cfg)
    add_model_config(cfg)
    add_correction_config(cfg)
    add_pretraining_config(cfg)

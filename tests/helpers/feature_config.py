"""A config and images for tests of features."""

from __future__ import annotations

import numpy as np

from sohes_d2 import add_sohes_config

from detectron2.config import CfgNode, get_cfg


def config(**features: object) -> CfgNode:
    """The defaults on the CPU, except for some keys under EXPLORATION.FEATURES."""
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in features.items():
        cfg.EXPLORATION.FEATURES[key] = value
    return cfg


def photos(count: int = 1, height: int = 60, width: int = 90, seed: int = 0) -> list[np.ndarray]:
    """Random images, (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]

"""A config for tests of features: the defaults on the CPU, except for some keys under EXPLORATION.FEATURES."""

from __future__ import annotations

from sohes_d2 import add_sohes_config

from detectron2.config import CfgNode, get_cfg


def config(**features: object) -> CfgNode:
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    for key, value in features.items():
        cfg.EXPLORATION.FEATURES[key] = value
    return cfg

"""Every yaml of configs/ merges into the defaults, and every key of the defaults can be set."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sohes_d2 import add_sohes_config
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.exploration.filtering import MaskFilter
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.exploration.zoom import Zoom

REPOSITORY = Path(__file__).parents[1]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))


def defaults():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_sohes_config(cfg)
    return cfg


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_config_loads_and_builds(path):
    cfg = defaults()
    cfg.merge_from_file(str(path))
    labeler = PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor())
    written = yaml.safe_load(path.read_text())["EXPLORATION"]
    assert cfg.EXPLORATION.FEATURES.NAME == written["FEATURES"]["NAME"]
    if "THETAS" in written:
        assert list(labeler.thetas) == written["THETAS"]


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("VERSION: 2\nEXPLORATION:\n  ZOOM:\n    ENABLE: True\n")
    with pytest.raises(KeyError, match="EXPLORATION.ZOOM.ENABLE"):
        defaults().merge_from_file(str(path))


def test_keywords_and_config_have_the_same_defaults():
    from_cfg = PseudoLabeler.from_cfg(defaults(), extractor=ColorTextureExtractor())
    assert from_cfg.zoom == Zoom()
    assert from_cfg.mask_filter == MaskFilter()
    assert from_cfg.describe() == PseudoLabeler(ColorTextureExtractor()).describe()

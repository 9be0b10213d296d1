"""Configs shipped with the package, by name; those of phase 1 without Detectron2."""

from pathlib import Path

import pytest

import sohes_d2.config.load
from sohes_d2.config import exploration_cfg
from sohes_d2.config.load import load_config
from sohes_d2.errors import ConfigError
from sohes_d2.model_zoo import get_config, get_config_file, shipped_configs

CONFIGS = Path(__file__).parents[2] / "configs"


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = str(CONFIGS / "exploration" / "joint.yaml")
    for name in (
        "joint",
        "joint.yaml",
        "exploration/joint",
        "exploration/joint.yaml",
        "configs/exploration/joint.yaml",
    ):
        assert get_config_file(name) == wanted
    assert len(shipped_configs()) == len(list(CONFIGS.rglob("*.yaml")))
    (tmp_path / "joint").write_text("VERSION: 2")
    assert get_config_file("joint") == "joint", "a file goes before a name"
    with pytest.raises(ConfigError, match="Did you mean .*exploration/joint"):
        get_config_file("exploration/jiont")
    monkeypatch.setattr(sohes_d2.config.load, "shipped_configs", lambda: {"a/x": "1", "b/x": "2"})
    with pytest.raises(ConfigError, match="could be a/x or b/x"):
        get_config_file("x")


def test_a_config_equals_its_file():
    cfg = get_config("synthetic")
    assert cfg == load_config(str(CONFIGS / "exploration" / "synthetic.yaml"))
    assert cfg.EXPLORATION.LEAVES.NAME == "grid" and not cfg.is_frozen()


def test_without_detectron2_phase_1_has_the_same_keys(monkeypatch):
    whole = load_config("joint", ["EXPLORATION.MAX_PIXELS", "1000"])
    monkeypatch.setattr(sohes_d2.config.load, "is_installed", lambda: False)
    cfg = load_config("joint", ["EXPLORATION.MAX_PIXELS", "1000"])
    assert type(cfg) is type(exploration_cfg()) and type(cfg) is not type(whole)
    assert cfg.EXPLORATION == whole.EXPLORATION and cfg.EXPLORATION.MAX_PIXELS == 1000
    assert cfg.MODEL.DEVICE == whole.MODEL.DEVICE and cfg.INPUT.MAX_IMAGE_PIXELS == whole.INPUT.MAX_IMAGE_PIXELS
    for file, options in (("Base-SOHES", []), ("", ["SOLVER.BASE_LR", "1"])):
        with pytest.raises(ConfigError, match="sohes setup"):
            load_config(file, options)

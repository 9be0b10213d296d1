"""Configs from files and command lines, and what is said about those that cannot be used."""

import pytest

from sohes_d2.engine.config_file import ConfigError, load_config


def test_file_then_options(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\nMODEL: {VIT: {OPTIONS: {depth: 3}}}\n")
    cfg = load_config(str(tmp_path / "c.yaml"), ["SOLVER.LAYER_DECAY", "0.8", "DATASETS.TEST", "('a',)"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.LAYER_DECAY) == (0.5, 8, 0.8)
    assert cfg.DATASETS.TEST == ("a",)
    assert cfg.MODEL.VIT.OPTIONS.depth == 3
    assert not cfg.is_frozen()


def test_free_options_come_from_the_command_line_too():
    cfg = load_config("", ["MODEL.VIT.OPTIONS.depth", "4", "MODEL.VIT.OPTIONS.qkv_bias", "False"])
    assert dict(cfg.MODEL.VIT.OPTIONS) == {"depth": 4, "qkv_bias": False}
    assert (
        load_config("", ["MODEL.VIT.OPTIONS.depth", "4", "MODEL.VIT.OPTIONS.depth", "5"]).MODEL.VIT.OPTIONS.depth == 5
    )


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("SOLVER.MAX_ITERS", "Did you mean SOLVER.MAX_ITER"),
        ("MODEL.NUM_OBJECT_QUERIES", "MASK_FORMER.NUM_OBJECT_QUERIES"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(tmp_path, key, hint):
    with pytest.raises(ConfigError, match=f"there is no key {key}.*{hint}"):
        load_config("", [key, "3"])
    section, leaf = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}: {{{leaf}: 3}}\n")
    with pytest.raises(ConfigError, match=f"c.yaml.*there is no key {key}.*{hint}"):
        load_config(str(tmp_path / "c.yaml"))


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml' does not exist"):
        load_config(str(tmp_path / "none.yaml"))
    (tmp_path / "c.yaml").write_text("_BASE_: gone.yaml\n")
    with pytest.raises(ConfigError, match="c.yaml.*gone.yaml' does not exist"):
        load_config(str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("SOLVER: [unclosed\n")
    with pytest.raises(ConfigError, match="c.yaml"):
        load_config(str(tmp_path / "c.yaml"))


def test_code_in_a_file_is_not_run(tmp_path):
    (tmp_path / "c.yaml").write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    with pytest.raises(ConfigError):
        load_config(str(tmp_path / "c.yaml"))
    assert not (tmp_path / "ran").exists()


def test_values_and_pairs_are_checked():
    with pytest.raises(ConfigError, match="SOLVER.MAX_ITER cannot be set to 'many'.*Type mismatch"):
        load_config("", ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ConfigError, match="KEY VALUE pairs"):
        load_config("", ["SOLVER.MAX_ITER"])
    with pytest.raises(ConfigError, match="KEY VALUE pairs.*--resume"):
        load_config("", ["SOLVER.MAX_ITER", "3", "--resume", "x"])

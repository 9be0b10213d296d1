"""Configs from files, by name and from command lines, without Detectron2, and errors about invalid ones."""

import os
from pathlib import Path

import pytest
import yaml

import sohes_d2.config.load
from sohes_d2.config import exploration_cfg
from sohes_d2.config.load import load_config
from sohes_d2.config.renamed import RENAMED, new_name
from sohes_d2.errors import ConfigError
from sohes_d2.model_zoo import get_config, get_config_file, shipped_configs

CONFIGS = Path(__file__).parents[2] / "configs"


def test_file_then_options(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {BASE_LR: 0.5, MAX_ITER: 7}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 8}\nMODEL: {VIT: {OPTIONS: {depth: 3}}}\n")
    cfg = load_config(str(tmp_path / "c.yaml"), ["SOLVER.LAYER_DECAY", "0.8", "DATASETS.TEST", "('a',)"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.LAYER_DECAY) == (0.5, 8, 0.8)
    assert cfg.DATASETS.TEST == ("a",)
    assert cfg.MODEL.VIT.OPTIONS.depth == 3
    assert not cfg.is_frozen()


def test_free_options_can_be_set_on_the_command_line():
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
def test_unknown_keys_are_refused_with_suggestions(tmp_path, key, hint):
    with pytest.raises(ConfigError, match=f"there is no key {key}.*{hint}"):
        load_config("", [key, "3"])
    section, leaf = key.split(".")
    (tmp_path / "c.yaml").write_text(f"{section}: {{{leaf}: 3}}\n")
    with pytest.raises(ConfigError, match=f"c.yaml.*there is no key {key}.*{hint}"):
        load_config(str(tmp_path / "c.yaml"))


def dotted(node, prefix=""):
    """All keys and sections of a config."""
    for key, value in node.items():
        yield prefix + key
        if hasattr(value, "items"):
            yield from dotted(value, f"{prefix}{key}.")


def test_renamed_keys_are_reported_with_their_new_name():
    cfg = load_config("")
    today = set(dotted(cfg))
    assert len(RENAMED) > 20
    for old, new in RENAMED.items():
        assert new in today and old not in today
        with pytest.raises(ConfigError, match=f"{old} is now {new}"):
            load_config("", [old, "1"])


def test_all_renamed_keys_of_a_file_are_reported(tmp_path):
    (tmp_path / "c.yaml").write_text("TEST: {DUPLICATE_IOU: 0.9, VIEWS: {NAMES: [same]}}\nSOLVER: {MAX_ITER: 2}\n")
    with pytest.raises(ConfigError) as error:
        load_config(str(tmp_path / "c.yaml"))
    assert "TEST.DUPLICATE_IOU is now TEST.NMS_THRESHOLD; TEST.VIEWS.NAMES is now TEST.TTA.TRANSFORMS" in str(
        error.value
    )
    assert "\n" not in str(error.value) and "MAX_ITER" not in str(error.value)


@pytest.mark.parametrize("section", ["TEST.TTA", "CORRECTION.TEACHER_TTA"])
def test_old_names_of_transforms_are_reported(tmp_path, section):
    first, second = section.split(".")
    (tmp_path / "c.yaml").write_text(f"{first}: {{{second}: {{TRANSFORMS: [same, hflip, turned_90]}}}}\n")
    expected = f"{section}.TRANSFORMS same is now identity; {section}.TRANSFORMS turned_90 is now rot90$"
    with pytest.raises(ConfigError, match=expected):
        load_config(str(tmp_path / "c.yaml"))
    with pytest.raises(ConfigError, match=expected):
        load_config("", [f"{section}.TRANSFORMS", "['same', 'hflip', 'turned_90']"])
    load_config("", [f"{section}.TRANSFORMS", "['identity', 'hflip', 'rot90']"])


def test_new_names_of_keys_in_renamed_sections():
    assert new_name("EXPLORATION.ZOOM.LARGE") == "EXPLORATION.LOCAL_RECLUSTERING.LARGE"
    assert new_name("EXPLORATION.ZOOM.SAME_CROP_IOU") == "EXPLORATION.LOCAL_RECLUSTERING.NMS_THRESHOLD"
    assert new_name("EXPLORATION.FILTER.MIN_AREA") == new_name("TEST") == new_name("EXPLORATION.ZOOMED") == ""


def test_detectron2s_own_tta_is_refused():
    with pytest.raises(ConfigError, match="TEST.TTA"):
        load_config("", ["TEST.AUG.ENABLED", "True"])
    assert not load_config("", ["TEST.AUG.ENABLED", "False"]).TEST.AUG.ENABLED


LINE, PAIR, FOLDER = "a.json, a/", ["c.json", "c/"], {"images": "b/"}


@pytest.mark.parametrize("before", [LINE, PAIR, FOLDER])
@pytest.mark.parametrize("after", [LINE, PAIR, FOLDER])
def test_a_data_set_description_can_be_replaced_by_any_form(tmp_path, before, after):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"DATASETS": {"REGISTER": {"mine": before, "other": LINE}}}))
    changed = load_config(str(tmp_path / "base.yaml"), ["DATASETS.REGISTER.mine", str(after)])
    assert changed.DATASETS.REGISTER == {"mine": after, "other": LINE}
    content = {"_BASE_": "base.yaml", "DATASETS": {"REGISTER": {"mine": after}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(content))
    assert load_config(str(tmp_path / "c.yaml")).DATASETS.REGISTER == {"mine": after, "other": LINE}
    for wrong in ("DATASETS: 5\n", "DATASETS: {REGISTER: 5}\n"):
        (tmp_path / "c.yaml").write_text("_BASE_: base.yaml\n" + wrong)
        with pytest.raises(ConfigError, match="Type mismatch"):
            load_config(str(tmp_path / "c.yaml"))


def test_data_sets_are_registered_by_name(tmp_path):
    (tmp_path / "c.yaml").write_text("DATASETS: {REGISTER: {mine: [a.json, a/], more: {images: b/}}}\n")
    cfg = load_config(
        str(tmp_path / "c.yaml"), ["DATASETS.REGISTER.mine", "['c.json', 'c/']", "DATASETS.REGISTER.new", "d, d/"]
    )
    assert cfg.DATASETS.REGISTER == {"mine": ["c.json", "c/"], "more": {"images": "b/"}, "new": "d, d/"}
    (tmp_path / "old.yaml").write_text("DATASETS: {REGISTER: 'mine: a.json, a/'}\n")
    with pytest.raises(ConfigError, match="DATASETS.REGISTER.mine"):
        load_config(str(tmp_path / "old.yaml"))


def test_unreadable_files_are_reported(tmp_path):
    with pytest.raises(ConfigError, match="none.yaml' does not exist"):
        load_config(str(tmp_path / "none.yaml"))
    (tmp_path / "c.yaml").write_text("_BASE_: gone.yaml\n")
    with pytest.raises(ConfigError, match="gone.yaml' .*c.yaml'.: the file does not exist"):
        load_config(str(tmp_path / "c.yaml"))
    (tmp_path / "c.yaml").write_text("SOLVER: [unclosed\n")
    with pytest.raises(ConfigError, match="c.yaml"):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "OUTPUT_DIR: !!python/object/apply:os.mkdir ['{folder}/ran']\n",
        "OUTPUT_DIR: !!python/object/new:os.mkdir ['{folder}/ran']\n",
        "_BASE_: !!python/object/apply:os.mkdir ['{folder}/ran']\n",
        "!!python/object/apply:os.mkdir ['{folder}/ran']: 3\n",
        "INPUT: {{FORMAT: !!python/name:os.mkdir ''}}\n",
    ],
)
def test_code_in_a_file_is_not_run(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text.format(folder=tmp_path))
    (tmp_path / "over.yaml").write_text("_BASE_: c.yaml\n")
    for name in ("c.yaml", "over.yaml"):
        with pytest.raises(ConfigError, match=r"c.yaml.*the tag .*python.* in line 1: tags can run code"):
            load_config(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ConfigError):
        load_config(
            "", ["OUTPUT_DIR", f"!!python/object/apply:os.mkdir ['{tmp_path}/ran']", "MODEL.VIT.OPTIONS.a", "!!x 3"]
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [*a]\n", "more than 20000 values"),
        ("a: &a {b: *a}\n", "more than 20000 values"),
        ("x: " + "[" * 5000 + "]" * 5000, "nested more than 32 deep"),
        ("x: " + "{a: " * 5000, "nested more than 32 deep"),
        (
            "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"a{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 10)}]\n" for i in range(9)),
            "more than 20000 values",
        ),
        ("#" * (1 << 20) + "\n", "larger than 1048576 bytes"),
        ("- a\n- b\n", "contains list, not keys and values"),
        ("", "contains NoneType"),
        ("3: 4\n", "the key 3 is not a string"),
        ("INPUT: {3: 4}\n", "the key 3 is not a string"),
        ("SOLVER: 3\n", "SOLVER"),
        ("INPUT: {FORMAT: {a: 1}}\n", "INPUT.FORMAT"),
        ("SOLVER: {BASE_LR: 2001-99-99}\n", "a value cannot be read"),
        ("SOLVER: {BASE_LR: 2001-01-01}\n", "BASE_LR"),
        ("SOLVER: {STEPS: '" + "(" * 3000 + ")" * 3000 + "'}\n", "SOLVER.STEPS"),
        ("VERSION: 1\n", "VERSION is 1, not 2"),
        ("_BASE_: c.yaml\n", "_BASE_ forms a cycle"),
        ("_BASE_: [a.yaml]\n", "not the path of a file"),
        ("_BASE_: .\n", "a folder, not a file"),
        ("a: *none\n", "found undefined alias 'none' in line 1"),
        ("a: 1\n\tb: 2\n", "in line 2"),
        ("\x00", "invalid yaml"),
    ],
)
def test_unusual_files_are_refused_in_one_line(tmp_path, text, reason):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config(str(tmp_path / "c.yaml"))
    assert "c.yaml" in str(error.value) and reason in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_bytes_and_pipes_are_refused(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(str(tmp_path / "c.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        load_config(str(tmp_path / "pipe.yaml"))


def test_aliases_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbfSOLVER: {BASE_LR: &x 0.25, GAMMA: *x}\n")
    cfg = load_config(str(tmp_path / "c.yaml"))
    assert cfg.SOLVER.BASE_LR == cfg.SOLVER.GAMMA == 0.25


def test_values_and_pairs_are_checked():
    with pytest.raises(ConfigError, match="SOLVER.MAX_ITER cannot be set to 'many'.*Type mismatch"):
        load_config("", ["SOLVER.MAX_ITER", "many"])
    with pytest.raises(ConfigError, match="KEY VALUE pairs"):
        load_config("", ["SOLVER.MAX_ITER"])
    with pytest.raises(ConfigError, match="KEY VALUE pairs.*--resume"):
        load_config("", ["SOLVER.MAX_ITER", "3", "--resume", "x"])


def test_configs_are_found_by_name(tmp_path, monkeypatch):
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

"""The command line of pretraining."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.tiny_pretraining import tiny_options, write_photos

from sohes_d2.cli.pretrain import build_cfg, main, parse_arguments

pytest.importorskip("lightly", reason="pip install 'sohes_d2[pretrain]'")

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs" / "pretraining").glob("*.yaml"))


@pytest.fixture
def photos(tmp_path):
    write_photos(tmp_path, 4)
    (tmp_path / "tiny.yaml").write_text("VERSION: 2\n")
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    return ["--config-file", str(folder / "tiny.yaml"), *more, "--", *tiny_options(folder, folder / "run", 2)]


def test_training_and_checking_from_the_command_line(photos, capsys):
    assert main(arguments(photos)) == 0
    card = json.loads((photos / "run" / "model_card.json").read_text())
    assert card["iterations"] == 2 and card["data"]["photos"] == 4
    best = str(photos / "run" / "backbone_best.safetensors")
    capsys.readouterr()
    assert main([*arguments(photos, "--check-only", "vit_file"), "EXPLORATION.FEATURES.WEIGHTS", best,
                 "EXPLORATION.FEATURES.TOKEN_BUDGET", "48"]) == 0  # fmt: skip
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"AUC {card['best']['auc']:.4f}  near AUC {card['best']['near_auc']:.4f}  images 4"
    assert main([*arguments(photos, "--resume"), "SOLVER.MAX_ITER", "3"]) == 0
    assert json.loads((photos / "run" / "model_card.json").read_text())["iterations"] == 3


def test_flags_are_config_keys(photos):
    flags = ["--images", "a", "b c", "--teacher", "vit_base_patch8_224.dino", "--teacher-weights", "w.pth"]
    flags += ["--check-json", "x.json", "--check-images", "y", "--output", "z"]
    cfg = build_cfg(parse_arguments(["--config-file", str(photos / "tiny.yaml"), *flags, "--", "SEED", "5"]))
    assert cfg.PRETRAINING.IMAGES == ["a", "b c"] and cfg.PRETRAINING.METHOD == "distillation"
    assert (cfg.PRETRAINING.TEACHER.NAME, cfg.PRETRAINING.TEACHER.WEIGHTS) == ("vit_base_patch8_224.dino", "w.pth")
    assert (cfg.PRETRAINING.CHECK.JSON, cfg.PRETRAINING.CHECK.IMAGES) == ("x.json", "y")
    assert cfg.OUTPUT_DIR == "z" and cfg.SEED == 5


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["PRETRAINING.IMAGES", "[]"], "PRETRAINING.IMAGES is empty"),
        (["PRETRAINING.IMAGES", "['/none']"], "'/none' does not exist"),
        (["PRETRAINING.LOSES.IMAGE", "1"], "Did you mean PRETRAINING.LOSSES.IMAGE"),
        (["MODEL.VIT.WEIGHTS", "/none.pth"], "does not exist"),
        (["PRETRAINING.CHECK.JSON", "/none.json"], "check the path"),
        (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH"),
    ],
)
def test_usage_errors_are_one_line(photos, capsys, more, says):
    assert main([*arguments(photos), *more]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("sohes pretrain: ") and says in line


@pytest.mark.parametrize("flags", [["--teacher-weights", "a.pth"], ["--num-gpus", "-1"], ["--machine-rank", "1"]])
def test_incompatible_flags(photos, flags):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--config-file", str(photos / "tiny.yaml"), *flags])
    assert stopped.value.code == 2


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads(path):
    cfg = build_cfg(parse_arguments(["--config-file", str(path), "--images", "photos"]))
    assert cfg.MODEL.DEVICE == "cpu" and cfg.PRETRAINING.METHOD in ("self_distillation", "distillation")
    if cfg.PRETRAINING.METHOD == "self_distillation":
        from sohes_d2.pretraining.trainer import PretrainingTrainer

        model = PretrainingTrainer.build_model(cfg)
        assert cfg.PRETRAINING.VIEWS.GLOBAL_SIZE % model.patch == 0
        assert cfg.PRETRAINING.VIEWS.LOCAL_SIZE % model.patch == 0

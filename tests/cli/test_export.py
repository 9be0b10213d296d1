"""`sohes export`: files written, equal evaluation results, and refused checkpoints."""

import json
import os
from pathlib import Path

import pytest
import torch
from helpers.mutual_training import mutual_cfg, mutual_model, plain_cfg, plain_model
from helpers.tiny_training import write_scenes

from sohes_d2.cli.export import main as export_model
from sohes_d2.cli.train import main as train_net
from sohes_d2.config.load import load_config
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.weights.checkpoint import SOHESCheckpointer

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for each of phases 2 and 3 with a checkpoint and a config, as written by training."""
    folder = tmp_path_factory.mktemp("export")
    both = mutual_model(seed=1)
    both.teacher.load_state_dict(plain_model(seed=2).state_dict())
    for name, cfg, model in (("phase2", plain_cfg(""), plain_model()), ("phase3", mutual_cfg(""), both)):
        (folder / name).mkdir()
        (folder / name / "config.yaml").write_text(cfg.dump())
        optimizer = {"momentum": [torch.zeros(100_000)]}
        torch.save({"model": model.state_dict(), "optimizer": optimizer, "iteration": 5}, folder / name / "model.pth")
    return folder


def loaded(exported):
    """Config and state dict of an exported model."""
    cfg = load_config(str(exported / "config.yaml"))
    model = build_model(cfg)
    SOHESCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return cfg, model.state_dict()


@pytest.mark.parametrize(
    ("phase", "arguments", "seed"),
    [
        ("phase3", [], 2),
        ("phase3", ["--which", "teacher", "--format", "pth"], 2),
        ("phase3", ["--which", "student"], 1),
        ("phase2", [], 0),
    ],
)
def test_the_export_is_the_plain_model(folder, tmp_path, capsys, phase, arguments, seed):
    checkpoint = folder / phase / "model.pth"
    assert export_model([str(checkpoint), "--output", str(tmp_path / "out"), *arguments]) == 0
    weights = "model.pth" if "pth" in arguments else "model.safetensors"
    assert sorted(os.listdir(tmp_path / "out")) == ["config.yaml", weights]
    cfg, found = loaded(tmp_path / "out")
    assert cfg.MODEL.META_ARCHITECTURE == "SOHES"
    wanted = plain_model(seed).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    written = os.path.getsize(tmp_path / "out" / weights)
    assert written < os.path.getsize(checkpoint) / (1.9 if phase == "phase3" else 1.1)
    assert weights in capsys.readouterr().out


def test_half_precision_is_half_the_size_and_close(folder, tmp_path):
    checkpoint = str(folder / "phase3" / "model.pth")
    for name, arguments in (("full", []), ("half", ["--half"])):
        assert export_model([checkpoint, "--output", str(tmp_path / name), *arguments]) == 0
    full, half = (os.path.getsize(tmp_path / name / "model.safetensors") for name in ("full", "half"))
    assert 0.45 < half / full < 0.7
    _, found = loaded(tmp_path / "half")
    for name, value in plain_model(2).state_dict().items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_keys_at_the_end_change_the_config(folder, tmp_path, capsys):
    checkpoint = str(folder / "phase3" / "model.pth")
    keys = ["TEST.MIN_SCORE", "0.25", "MODEL.WEIGHTS", "elsewhere.pth", "OUTPUT_DIR", "there"]
    assert export_model([checkpoint, "--output", str(tmp_path), *keys]) == 0
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.TEST.MIN_SCORE, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == (0.25, "elsewhere.pth", "there")
    assert export_model([checkpoint, "--output", str(tmp_path), "TEST.MIN_SCOR", "0.25"]) == 2
    assert "TEST.MIN_SCORE" in capsys.readouterr().err


def test_an_export_evaluates_like_the_teacher(folder, tmp_path):
    write_scenes(tmp_path / "scenes", count=2)
    register_coco_entities("export_scenes", str(tmp_path / "scenes/labels.json"), str(tmp_path / "scenes/images"))
    try:
        cfg = mutual_cfg(str(tmp_path), folder / "phase3" / "model.pth", test=("export_scenes",))
        (tmp_path / "config.yaml").write_text(cfg.dump())
        model = SOHESTrainer.build_model(cfg)
        SOHESCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        wanted = SOHESTrainer.test(cfg, model)

        arguments = ["--config-file", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "out")]
        assert export_model([cfg.MODEL.WEIGHTS, *arguments]) == 0
        config_file = str(tmp_path / "out" / "config.yaml")
        before = Path(config_file).read_text()
        assert train_net(["--config-file", config_file, "--eval-only", "--num-gpus", "0"]) == 0
        assert Path(config_file).read_text() == before
        found = json.loads((tmp_path / "out" / "evaluation" / "evaluation.json").read_text())
        assert found["results"]["export_scenes"]["segm"]["AR@100"] == pytest.approx(wanted["segm"]["AR@100"])
        assert wanted["segm"]["AR@100"] >= 0
    finally:
        DatasetCatalog.remove("export_scenes")
        MetadataCatalog.remove("export_scenes")


def test_errors_are_explained(folder, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    phase2, phase3 = (str(folder / name / "model.pth") for name in ("phase2", "phase3"))

    def error(*arguments):
        assert export_model([*arguments, *out]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "it has no student: it contains a single model" in error(phase2, "--which", "student")
    assert "none.pth': the file does not exist" in error(str(tmp_path / "none.pth"))
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "it contains no model" in error(str(tmp_path / "empty.pth"))
    torch.save({"model": {}}, tmp_path / "w.pth")
    assert "config.yaml' does not exist" in error(str(tmp_path / "w.pth"))

    other = plain_cfg("")
    other.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 20
    (tmp_path / "other.yaml").write_text(other.dump())
    message = error(phase3, "--config-file", str(tmp_path / "other.yaml"))
    assert "does not match the model of the config: 2 of" in message
    assert "query_embed.weight" in message

    state = plain_model().state_dict()
    next(iter(state.values())).fill_(1e6)
    torch.save({"model": state}, tmp_path / "large.pth")
    message = error(str(tmp_path / "large.pth"), "--half", "--config-file", str(folder / "phase2" / "config.yaml"))
    assert "not finite in float16" in message

"""`sohes train-borders`: rounds of labeling and training, each based on the previous one."""

import numpy as np
import pytest
from PIL import Image

from sohes_d2.cli import train_borders
from sohes_d2.cli.main import main as command
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.exploration.border_network import LearnedBorders
from sohes_d2.labels.shards import ShardedDataset


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for k in range(3):
        Image.fromarray(generate_scene(0, k, (64, 64))[0]).save(folder / f"{k}.png")
    return folder


TINY = """
_BASE_: {base}
MODEL:
  BORDER_NETWORK:
    CHANNELS: [4, 6]
INPUT:
  IMAGE_SIZE: 32
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 3
"""


def test_a_round_writes_weights_usable_in_phase_one(photos, tmp_path, monkeypatch, capfd):
    from sohes_d2.model_zoo import get_config_file

    (tmp_path / "tiny.yaml").write_text(TINY.format(base=get_config_file("border_student")))
    monkeypatch.setattr(train_borders, "_run", lambda arguments: command(arguments) and pytest.fail(str(arguments)))
    output = tmp_path / "out"
    arguments = ["--images", str(photos), "--output", str(output), "--rounds", "1", "--workers", "0"]
    options = ["EXPLORATION.FEATURES.NAME", "color_texture"]
    arguments += ["--training-config", str(tmp_path / "tiny.yaml")]
    assert train_borders.main([*arguments, *options]) == 0, capfd.readouterr().err
    checkpoint = output / "round_1" / "training" / "model_final.pth"
    assert len(ShardedDataset(str(output / "round_1" / "labels"))) == 3
    kept, full = LearnedBorders(str(output / "borders.safetensors")), LearnedBorders(str(checkpoint))
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert abs(kept([image])[0].astype(int) - full([image])[0]).max() <= 1  # saved in half precision
    assert train_borders.main([*arguments, *options]) == 2
    assert "--resume" in capfd.readouterr().err


def test_each_round_starts_from_the_previous_network(photos, tmp_path, monkeypatch):
    exported, labeled, trained = [], [], []
    monkeypatch.setattr(train_borders, "_label", lambda args, folder, weights: labeled.append(weights))
    monkeypatch.setattr(train_borders, "_train", lambda args, folder, weights: trained.append((folder.name, weights)))
    monkeypatch.setattr(train_borders, "_export", lambda checkpoint, path: exported.append(checkpoint))
    assert train_borders.main(["--images", str(photos), "--output", str(tmp_path), "--rounds", "2", "--resume"]) == 0
    first, second = (str(tmp_path / f"round_{k}" / "training" / "model_final.pth") for k in (1, 2))
    assert labeled == ["", first] and trained == [("round_1", ""), ("round_2", first)] and exported == [second]


def test_a_failed_step_ends_the_command(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train_borders.subprocess, "run", lambda command: type("", (), {"returncode": 1}))
    assert train_borders.main(["--images", str(photos), "--output", str(tmp_path)]) == 1
    assert "`sohes label` ended with exit code 1" in capsys.readouterr().err

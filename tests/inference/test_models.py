"""`sohes_d2.load` and the common interface: names, image types, arguments, use without Detectron2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import sohes_d2
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.errors import ConfigError, ImageReadError
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.inference import models, predictor

REPOSITORY = Path(__file__).parents[2]
FAST = (
    "EXPLORATION.LOCAL_RECLUSTERING.ENABLED",
    "False",
    "EXPLORATION.LOCAL_RECLUSTERING.LARGE",
    "False",
    "EXPLORATION.HIERARCHY.MAX_DEPTH",
    "3",
)


@pytest.fixture(scope="module")
def model():
    return sohes_d2.load("color_texture", options=FAST)


@pytest.fixture(scope="module")
def photo():
    return generate_scene(3, 0, (64, 96))[0]


def same(a, b):
    return a.masks == b.masks and a.parents.tolist() == b.parents.tolist()


def test_any_kind_of_image(model, photo, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo).save(path)
    expected = model(photo)
    assert len(expected) > 5 and expected.image_size == (64, 96)
    assert expected.rules.max_depth == 3 and expected.photo is photo and expected.file_name == ""
    alpha = np.dstack([photo, np.full(photo.shape[:2], 255, np.uint8)])
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    images = [path, str(path), Image.open(path), alpha, photo / 255.0, tensor, tensor.float() / 255]
    assert all(same(model(image), expected) for image in images)
    assert model(path).file_name == str(path)
    grey = photo[..., 0]
    assert same(model(grey), model(np.dstack([grey] * 3))) and same(model(Image.fromarray(grey)), model(grey))


def test_several_images(model, photo, tmp_path, caplog):
    for name in ("b.png", "a.png"):
        Image.fromarray(photo).save(tmp_path / name)
    (tmp_path / "c.png").write_text("no image")
    expected = model(photo)
    found = model(tmp_path)
    assert not isinstance(found, sohes_d2.Forest)
    found = list(found)
    assert [Path(forest.file_name).name for forest in found] == ["a.png", "b.png"]
    assert all(same(forest, expected) for forest in found)
    assert "c.png" in caplog.text
    assert len(list(model(str(tmp_path / "[ab].png")))) == 2
    assert all(same(forest, expected) for forest in model([photo, tmp_path / "a.png"]))
    with pytest.raises(ImageReadError):
        model(tmp_path / "none.png")
    for wrong in (3, photo[:, :, :2], None):
        with pytest.raises(ValueError, match="an image must"):
            model(wrong)


def test_arguments(model, photo):
    everything = model(photo)
    few = model(photo, entities=3)
    assert same(few, everything.select(3)) and 1 <= len(few) <= 3 and (few.parents == -1).all()
    deep = model(photo, entities=3, max_depth=2)
    assert deep.areas[deep.parents == -1].tolist() == few.areas.tolist() and deep.depths().max() <= 2
    assert same(model(photo, max_depth=0), everything.filter(max_depth=0))
    score = float(np.median(everything.scores))
    assert same(model(photo, min_score=score), everything.filter(min_score=score))
    for wrong in ({"entities": -1}, {"max_depth": -1}):
        with pytest.raises(ValueError, match="at least 0"):
            model(photo, **wrong)


def test_names(monkeypatch, tmp_path):
    built = []
    monkeypatch.setattr(models.PseudoLabeler, "from_cfg", lambda cfg: built.append(cfg) or PseudoLabelerStub())
    monkeypatch.setattr(predictor, "SOHESPredictor", PredictorStub)
    monkeypatch.setattr(
        predictor, "load_model_folder", lambda folder, options: (models.load_config("", options), folder)
    )
    assert sohes_d2.load("joint").cfg.EXPLORATION.FEATURES.NAME == "joint"
    assert sohes_d2.load("vit_small_patch14_dinov2.lvd142m").cfg.EXPLORATION.FEATURES.NAME.startswith("vit_small")
    assert sohes_d2.load("torchvision/resnet18").cfg.MODEL.DEVICE == models.choose_device("cuda")
    features = sohes_d2.load("shipped:vit_mini8").cfg.EXPLORATION.FEATURES
    assert (features.NAME, features.WEIGHTS) == ("vit_file", "shipped:vit_mini8")
    assert len(built) == 4
    assert sohes_d2.load("shipped:sohes_mini8", device="cpu").source.asked == ("shipped:sohes_mini8", "cpu")
    assert sohes_d2.load(tmp_path).source.asked == (str(tmp_path), None)
    assert sohes_d2.load(tmp_path, options=("TEST.CROPS.LAYERS", "1")).cfg.TEST.CROPS.LAYERS == 1

    import huggingface_hub

    downloads = []
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: downloads.append((name, allow_patterns)) or "hub-folder",
    )
    assert sohes_d2.load("someone/a-model").source.asked == ("hub-folder", None)
    assert downloads == [("someone/a-model", ["config.yaml", "model.safetensors"])]


class PseudoLabelerStub(PseudoLabeler):
    def __init__(self):
        """Builds nothing."""


class PredictorStub:
    def __init__(self, cfg, weights, device):
        self.asked = (weights, device)
        self.cfg = cfg

    def __call__(self, image):
        """Finds nothing."""


def test_unknown_names(monkeypatch):
    with pytest.raises(ConfigError, match="Did you mean color_texture"):
        sohes_d2.load("colour_texture")
    with pytest.raises(ConfigError, match="shipped:sohes_mini8"):
        sohes_d2.load("shipped:none")
    with pytest.raises(ConfigError, match="not available"):
        if torch.cuda.is_available():
            raise ConfigError("not available, says the test")
        sohes_d2.load("color_texture", device="cuda")

    import huggingface_hub

    for error, reason in (
        (huggingface_hub.errors.LocalEntryNotFoundError("no network"), "no network"),
        (OSError(), "OSError"),
    ):
        monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=error))
        with pytest.raises(ConfigError, match=f"hub: {reason}"):
            sohes_d2.load("someone/a-model")


def run(code):
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_the_import_is_light():
    code = "import time, sys, sohes_d2\n"
    code += "print(time.process_time(), *(name in sys.modules for name in ('torch', 'detectron2')))"
    seconds, *loaded = run(code)
    assert loaded == ["False", "False"]
    assert float(seconds) < 0.5
    assert set(sohes_d2.__all__) <= set(dir(sohes_d2))
    for name in sohes_d2.__all__:
        assert getattr(sohes_d2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'loda'"):
        sohes_d2.loda  # noqa: B018


def test_what_works_without_detectron2():
    """With Detectron2 hidden, label files, evaluation, page and forests work; the rest says what to install."""
    modules = (
        "structures.forest structures.images labels.shards labels.index labels.reader data.sources evaluation.scoring "
        "evaluation.predictions evaluation.ground_truth report visualization"
    )
    code = f"""
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("detectron2", "torch"):
            raise ModuleNotFoundError(name)
import importlib, importlib.machinery
real = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in ("detectron2", "torch") else real(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
import sohes_d2
for name in {modules!r}.split():
    importlib.import_module("sohes_d2." + name)
sohes_d2.Forest
try:
    sohes_d2.SOHESPredictor
except ImportError as error:
    print("sohes setup" in str(error))
"""
    assert run(code) == ["True"]

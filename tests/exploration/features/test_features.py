"""Feature extractors: grids, CNNs, and selection by the config."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import timm
import torch
from helpers.feature_config import config, photos
from PIL import Image
from torch.nn import functional as F

from sohes_d2.exploration.features import (
    FEATURE_EXTRACTORS,
    ColorTextureExtractor,
    JointExtractor,
    build,
    build_feature_extractor,
    extractor_by_name,
)
from sohes_d2.exploration.features.base import run_until, to_input
from sohes_d2.exploration.features.cnn import CNNExtractor
from sohes_d2.exploration.features.vit import ViTExtractor


@pytest.mark.parametrize(
    ("image", "budget", "grid"),
    [
        ((480, 480), 3600, (60, 60)),
        ((1080, 1920), 3600, (45, 80)),
        ((375, 500), 3600, (51, 69)),
        ((20000, 50), 3600, (1200, 3)),
        ((50, 20000), 3600, (3, 1200)),
        ((4, 100_000), 3600, (1, 3600)),
        ((1, 1), 3600, (1, 1)),
        ((3, 500), 3600, (3, 500)),
        ((480, 640), 1, (1, 1)),
    ],
)
def test_grid_keeps_the_aspect_within_the_budget(image, budget, grid):
    extractor = ColorTextureExtractor(token_budget=budget)
    assert extractor.grid_size(image) == grid


def test_the_budget_is_never_exceeded():
    rng = np.random.default_rng(0)
    for height, width, budget in rng.integers(1, 3000, (500, 3)):
        rows, cols = ColorTextureExtractor(token_budget=int(budget)).grid_size((int(height), int(width)))
        assert 1 <= rows <= height and 1 <= cols <= width and rows * cols <= budget


def test_resizing_is_that_of_pillow():
    [image] = photos(1, 97, 131)
    pixels = to_input([image], (64, 80), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(Image.fromarray(image).resize((80, 64), Image.BICUBIC), dtype=np.float32)
    assert np.abs(pixels - expected).max() < 1.01
    same = to_input([image], (97, 131), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), torch.device("cpu"))[0].permute(1, 2, 0)
    np.testing.assert_allclose(same.numpy(), (image / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stride", "stage", "dims"),
    [("test_resnet", 8, "layer2", 48), ("test_resnet", 4, "layer1", 32), ("torchvision/resnet18", 8, "layer2", 128)],
)
def test_a_cnn_gives_the_map_of_a_stage(name, stride, stage, dims):
    extractor = CNNExtractor(name, weights="random", stride=stride, token_budget=200)
    images = photos(2, 100, 150)
    features = extractor.extract(images)
    with torch.inference_mode():
        size = (11 * stride, 17 * stride) if stride == 8 else (64, 68)
        x = to_input(images, size, extractor.mean, extractor.std, torch.device("cpu"))
        expected = run_until(extractor.model, getattr(extractor.model, stage), x)
        if expected.shape[2:] != (11, 17):
            expected = F.interpolate(expected, size=(11, 17), mode="bilinear", antialias=True)
    assert (extractor.stage, extractor.dims) == (stage, dims)
    assert np.array_equal(features, expected.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(features, extractor.extract(images))


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "torchvision/squeezenet1_1"])
def test_other_cnns_and_tiny_grids(name):
    extractor = CNNExtractor(name, weights="random", token_budget=200)
    assert extractor.extract(photos(1, 100, 150)).shape == (1, 11, 17, extractor.dims)
    assert extractor.extract_at(photos(1, 1, 1), (1, 1)).shape == (1, 1, 1, extractor.dims)


def test_cnn_errors():
    with pytest.raises(ValueError, match=r"no map of stride 5 .*it has \[.*8, 16"):
        CNNExtractor("test_resnet", weights="random", stride=5)
    with pytest.raises(ValueError, match="torchvision has no model"):
        CNNExtractor("torchvision/resnet51", weights="random")
    with pytest.raises(ValueError, match="any size"):
        CNNExtractor("swin_tiny_patch4_window7_224", weights="random")


def test_the_config_chooses_by_name():
    extractor = build_feature_extractor(
        config(NAME="test_vit", WEIGHTS="random", BLOCK=1, FACET="value", TOKEN_BUDGET=48)
    )
    assert isinstance(extractor, ViTExtractor)
    facts = extractor.describe()
    assert (facts["block"], facts["facet"], facts["weights"], facts["token_budget"]) == (1, "value", "random:0", 48)
    assert isinstance(build_feature_extractor(config(NAME="test_resnet", WEIGHTS="random", STRIDE=4)), CNNExtractor)
    assert isinstance(build_feature_extractor(config(NAME="color_texture")), ColorTextureExtractor)
    for wrong in ("vit_base_patch8_24.dino", "vit_base_patch8_224.dina"):
        with pytest.raises(ValueError, match="Did you mean .*vit_base_patch8_224.dino"):
            build_feature_extractor(config(NAME=wrong))


def test_users_can_register_extractors():
    @FEATURE_EXTRACTORS.register()
    def doubled_budget(cfg):
        return ColorTextureExtractor(token_budget=2 * cfg.EXPLORATION.FEATURES.TOKEN_BUDGET)

    try:
        assert build_feature_extractor(config(NAME="doubled_budget", TOKEN_BUDGET=48)).token_budget == 96
    finally:
        del FEATURE_EXTRACTORS._obj_map["doubled_budget"]


def test_auto_uses_the_vit_if_its_weights_are_given(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(build, "AUTO_MODEL", "test_vit.r160_in1k")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    extractor = build_feature_extractor(config(WEIGHTS=str(tmp_path / "w.pth")))
    assert isinstance(extractor, ViTExtractor) and extractor.name == "test_vit.r160_in1k"
    assert extractor.describe()["weights"] == "file:w.pth"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_falls_back_offline_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(build, "hub_cached_file", lambda name: None)
    monkeypatch.setattr(build, "hub_reachable", lambda name, timeout: False)
    assert isinstance(extractor_by_name("auto"), JointExtractor)
    assert [record.levelname for record in caplog.records if record.name == build.__name__] == ["WARNING"]


@pytest.mark.parametrize("name", ["joint", "vit_file", "test_vit", "test_resnet"])
def test_the_default_device_is_the_cpu_without_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = config(NAME=name, WEIGHTS="random" if name.startswith("test") else "")
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    assert build_feature_extractor(cfg).on_host
    assert cfg.MODEL.DEVICE == "cuda", "the user's config stays as it is"

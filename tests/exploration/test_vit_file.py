"""ViT files of this project, alone and with colour: feature values, and errors about invalid files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers.feature_config import config
from safetensors.torch import save_file

from sohes_d2.errors import WeightsError
from sohes_d2.exploration.features import (
    ColorTextureExtractor,
    FeatureExtractor,
    JointExtractor,
    build_feature_extractor,
    load_vit_file,
)
from sohes_d2.exploration.features.vit import ViTExtractor
from sohes_d2.exploration.features.vit_file import METADATA_KEY

NAME = "vit_tiny_patch16_224"
OPTIONS = {"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture
def weights(tmp_path) -> str:
    extractor = ViTExtractor(NAME, options=OPTIONS, weights="random:1")
    path = str(tmp_path / "backbone.safetensors")
    header = {"name": NAME, "options": OPTIONS, "facet": "value"}
    save_file(extractor.model.state_dict(), path, metadata={METADATA_KEY: json.dumps(header)})
    return path


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 72, 3), dtype=np.uint8)


def test_the_file_contains_its_architecture(weights):
    found = load_vit_file(weights, token_budget=24)
    expected = ViTExtractor(NAME, options=OPTIONS, weights=weights, facet="value", token_budget=24)
    assert found.facet == "value" and found.dims == 24 and found.cell == 8
    np.testing.assert_array_equal(found.extract([image()]), expected.extract([image()]))
    built = build_feature_extractor(config(NAME="vit_file", WEIGHTS=weights, TOKEN_BUDGET=24))
    assert built.describe() == found.describe()
    assert load_vit_file(weights, facet="key").facet == "key"


def test_other_files_are_refused(tmp_path):
    plain = str(tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(WeightsError, match="header does not say.*EXPLORATION.FEATURES.NAME"):
        load_vit_file(plain)
    with pytest.raises(WeightsError, match="does not exist"):
        load_vit_file(str(tmp_path / "none.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_vit_file(str(tmp_path / "cut.safetensors"))
    for text in ("{", "[1]", '{"options": {}}', '{"name": 3}', '{"name": "a", "options": []}', "[" * 100_000):
        save_file({"a": torch.zeros(1)}, plain, metadata={"sohes_d2": text})
        with pytest.raises(WeightsError, match="the header's entry 'sohes_d2'"):
            load_vit_file(plain)


class Fixed(FeatureExtractor):
    """Returns given features, on the grid that they have."""

    name, cell, token_budget = "fixed", 8, 4

    def __init__(self, features):
        self._features = np.asarray(features, np.float32)

    def extract_at(self, images, grid):
        assert tuple(grid) == self._features.shape[:2]
        return self._features[None].repeat(len(images), 0)

    def describe(self):
        return {"name": self.name}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_cosine_is_the_weighted_mean_of_both(weight):
    rng = np.random.default_rng(3)
    fine, coarse = rng.normal(size=(2, 2, 5)), rng.normal(size=(2, 2, 7))
    found = JointExtractor(Fixed(fine), Fixed(coarse), weight=weight, shrink=1).extract_at([image()], (2, 2))[0]
    assert found.shape == (2, 2, 12) and found.dtype == np.float32
    for a, b in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
        expected = (1 - weight) * cosine(fine[a], fine[b]) + weight * cosine(coarse[a], coarse[b])
        assert cosine(found[a], found[b]) == pytest.approx(expected, abs=1e-6)


def test_the_coarse_part_is_resampled_between_cell_centres():
    coarse = np.zeros((1, 2, 2))
    coarse[0, 0], coarse[0, 1] = [1, 0], [0, 1]
    fine = np.ones((2, 4, 1))
    found = JointExtractor(Fixed(fine), Fixed(coarse), weight=1.0, shrink=2).extract_at([image()], (2, 4))[0]
    shares = np.array([1, 0.75, 0.25, 0])  # weights of the left cell at the centres of four columns
    expected = np.stack([shares, 1 - shares], axis=-1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[..., 1:], expected[None].repeat(2, 0), atol=1e-6)


def test_joint_by_config_has_the_grid_of_colour(weights):
    built = build_feature_extractor(config(NAME="joint", WEIGHTS=weights, TOKEN_BUDGET=216))
    color = ColorTextureExtractor(token_budget=216)
    assert isinstance(built, JointExtractor) and built.on_host
    found = built.extract([image()])
    assert found.shape[1:3] == color.extract([image()]).shape[1:3] == (12, 18)
    assert found.shape[3] == color.extract([image()]).shape[3] + 24
    again = built.extract([image(), image(1)])
    np.testing.assert_allclose(again[0], found[0], atol=1e-5)
    described = json.loads(json.dumps(built.describe()))
    assert described["coarse"]["facet"] == "value" and described["fine"]["name"] == "color_texture"


@pytest.mark.parametrize("settings", [{"weight": -0.1}, {"weight": 1.1}, {"shrink": 0.5}])
def test_joint_refuses_invalid_settings(settings):
    with pytest.raises(ValueError, match=r"weight in \[0, 1\] and a shrink from 1 on"):
        JointExtractor(Fixed(np.ones((1, 1, 1))), Fixed(np.ones((1, 1, 1))), **settings)

"""Weights shipped with the package: found by name, small, half precision, used without downloads."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.feature_config import config
from safetensors import safe_open

from sohes_d2.errors import WeightsError
from sohes_d2.exploration.features import JointExtractor, build, build_feature_extractor
from sohes_d2.inference.predictor import SOHESPredictor
from sohes_d2.modeling.backbone.vit import ViT
from sohes_d2.structures.masks import encode_masks, iou_matrix
from sohes_d2.weights import BACKBONE, PREFIX, local_path, shipped_files

MOST_BYTES = 25e6


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 72, 3), dtype=np.uint8)


def test_the_backbone_exists_and_others_are_refused():
    assert os.path.isfile(local_path(BACKBONE))
    assert local_path("some/file.pth") == "some/file.pth"
    with pytest.raises(WeightsError, match="'shipped:none' are not shipped with this package; it has .*vit_mini8"):
        local_path("shipped:none")
    with pytest.raises(WeightsError, match="are not shipped with this package"):
        local_path("shipped:../weights")


@pytest.mark.parametrize("name", sorted(shipped_files()))
def test_every_file_is_small_in_half_precision_and_has_a_card(name):
    path = shipped_files()[name]
    assert path.stat().st_size <= MOST_BYTES
    with safe_open(path, framework="pt") as file:
        types = {file.get_slice(key).get_dtype() for key in file.keys()}
    assert types <= {"F16", "I64"}
    card = path.parent / "README.md" if path.name == "model.safetensors" else path.with_suffix(".md")
    text = card.read_text(encoding="utf-8")
    for word in ("Licence", "research", "AR@1000", "without labels", "hours"):
        assert word in text, f"{card} lacks {word!r}"


def test_auto_falls_back_to_it_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(build, "hub_cached_file", lambda name: None)
    monkeypatch.setattr(build, "hub_reachable", lambda name, timeout: timeout > 4)
    with caplog.at_level(logging.INFO):
        found = build_feature_extractor(config(TOKEN_BUDGET=216))
    assert isinstance(found, JointExtractor) and found.coarse.describe()["weights"] == BACKBONE
    [warning] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    for word in ("NO DINO WEIGHTS", "joint", "connect to the internet", "--weights FILE"):
        assert word in warning.getMessage()
    named = build_feature_extractor(config(NAME="joint", TOKEN_BUDGET=216))
    by_path = build_feature_extractor(config(NAME="joint", TOKEN_BUDGET=216, WEIGHTS=local_path(BACKBONE)))
    expected = by_path.extract([photo()])
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(found.extract([photo()]), expected)
    np.testing.assert_array_equal(named.extract([photo()]), expected)


def test_it_initialises_phase_2():
    architecture = build_feature_extractor(config(NAME="vit_file")).model
    options = {"patch_size": 8, "img_size": 96, "embed_dim": 128, "depth": 3, "num_heads": 4}
    vit = ViT("vit_tiny_patch16_224", options=options)
    report = vit.load_pretrained(BACKBONE)
    assert report.origin == BACKBONE and not report.missing
    blocks = vit.model.blocks.state_dict()
    for key, value in architecture.blocks.state_dict().items():
        assert (blocks[key] == value).all()


def test_names_stay_in_the_folder():
    folder = Path(local_path(BACKBONE)).parent
    for name, path in shipped_files().items():
        assert folder in path.parents and not set(name) & set("/\\") and local_path(PREFIX + name) == str(path)


@pytest.mark.parametrize("name", [name for name, path in shipped_files().items() if path.name == "model.safetensors"])
def test_the_shipped_model_segments(name):
    predictor = SOHESPredictor(PREFIX + name)
    image = np.full((120, 160, 3), 60, np.uint8)
    image[30:90, 50:110] = (220, 120, 40)
    found, square = predictor(image), image[..., 0] > 100
    assert len(found) > 20 and found.image_size == square.shape
    assert iou_matrix(found.masks, encode_masks(square[None])).max() > 0.8
    config_text = (shipped_files()[name].parent / "config.yaml").read_text(encoding="utf-8")
    assert not [word for word in config_text.split() if word.startswith("/")], "a path of some machine"

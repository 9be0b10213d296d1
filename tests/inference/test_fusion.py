"""Fusion of the masks of a model and of the merge trees: scores by hand, duplicates, and the predictor's key."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_training import sohes_cfg

from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.errors import ConfigError
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.inference.fusion import Fusion
from sohes_d2.inference.predictor import SOHESPredictor
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.modeling import build_model


def forest(boxes, scores, source):
    masks = np.zeros((len(boxes), 20, 20), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes):
        mask[y0:y1, x0:x1] = True
    return Forest.from_masks(encode_masks(masks), (20, 20), scores=np.array(scores), sources=[source] * len(boxes))


def test_masks_of_queries_are_scored_by_the_trees():
    # 100 and 80 pixels, IoU 0.8: no duplicates; the tree's second mask is the better match of the second query
    trees = forest([(0, 0, 10, 10), (12, 12, 16, 16)], [0.5, 0.4], "look0")
    queries = forest([(0, 0, 10, 8), (12, 12, 16, 15), (0, 15, 4, 19)], [0.3, 0.9, 0.99], "model")
    found = Fusion(factor=0.5)(trees, queries)
    assert found.sources == ["look0", "look0", "model", "model", "model"]
    assert found.scores.tolist() == pytest.approx([0.5, 0.4, 0.5 * 0.8 * 0.5, 0.5 * 0.75 * 0.4, 0.0])
    assert found.areas.tolist() == [100, 16, 80, 12, 16]


def test_masks_of_queries_that_duplicate_others_are_removed():
    trees = forest([(0, 0, 10, 10)], [0.5], "look0")
    queries = forest([(0, 0, 10, 10), (2, 2, 6, 6)], [0.9, 0.8], "model")
    found = Fusion(factor=1.0)(trees, queries)
    assert found.sources == ["look0", "model"]
    assert found.scores.tolist() == pytest.approx([0.5, 0.16 * 0.5])
    assert found.parents.tolist() == [-1, 0]
    assert len(Fusion(nms_threshold=1.0)(trees, queries)) == 3
    assert Fusion(max_masks=1)(trees, queries).sources == ["look0"]
    assert Fusion(factor=1.0, min_score=0.1)(trees, queries).sources == ["look0"]
    assert len(Fusion(factor=1.0, min_score=0.08)(trees, queries)) == 2


def test_hierarchy_by_coverage():
    trees = forest([(0, 0, 10, 10)], [0.5], "look0")
    queries = forest([(0, 0, 10, 8)], [0.9], "model")
    assert Fusion(max_child_area=0.7)(trees, queries).parents.tolist() == [-1, -1]
    assert Fusion(max_child_area=0.9)(trees, queries).parents.tolist() == [-1, 0]


@pytest.mark.parametrize("side", ["trees", "queries", "neither"])
def test_a_side_without_masks(side):
    full, empty = forest([(0, 0, 10, 10)], [0.6], "x"), forest([], [], "x")
    trees, queries = (full if side == "trees" else empty), (full if side == "queries" else empty)
    found = Fusion()(trees, queries)
    assert found.scores.tolist() == pytest.approx({"trees": [0.6], "queries": [0.0], "neither": []}[side])
    assert found.image_size == (20, 20)


def test_settings_out_of_range():
    for settings, key in (({"factor": 1.1}, "FACTOR"), ({"nms_threshold": 0.0}, "NMS_THRESHOLD")):
        with pytest.raises(ConfigError, match=f"TEST.FUSION.{key}"):
            Fusion(**settings)


@pytest.fixture
def cfg(tmp_path):
    cfg = sohes_cfg(tmp_path)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    cfg.EXPLORATION.FEATURES.NAME = "color_texture"
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    return cfg


def counts(forest):
    return [mask["counts"] for mask in forest.masks]


def test_the_predictor_uses_the_masks_that_the_key_names(cfg):
    photo = generate_scene(0, 0, (48, 64))[0]
    found = {}
    for source in ("queries", "trees", "both"):
        cfg.TEST.MASKS_FROM = source
        found[source] = SOHESPredictor(cfg)(photo)
    trees = PseudoLabeler.from_cfg(cfg).generate(photo)
    assert counts(found["trees"]) == counts(trees)
    expected = Fusion.from_config(cfg)(trees, found["queries"])
    assert counts(found["both"]) == counts(expected) and np.array_equal(found["both"].parents, expected.parents)
    assert np.allclose(found["both"].scores, expected.scores, atol=1e-5)
    assert "model" in found["both"].sources and "look0" in found["both"].sources
    assert set(found["queries"].sources) == {"model"}

    cfg.TEST.MIN_SCORE = float(np.median(trees.scores))
    for source in ("trees", "both"):
        cfg.TEST.MASKS_FROM = source
        scores = SOHESPredictor(cfg)(photo).scores
        assert 0 < len(scores) < len(found[source]) and scores.min() >= cfg.TEST.MIN_SCORE
    cfg.TEST.MASKS_FROM = "tree"
    with pytest.raises(ConfigError, match="trees"):
        SOHESPredictor(cfg)

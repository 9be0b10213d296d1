"""Every yaml of configs/ merges into the defaults, and every key of the defaults can be set."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from sohes_d2 import add_sohes_config
from sohes_d2.exploration.candidates import MaskFilter
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.exploration.looks import Looks
from sohes_d2.exploration.proposals import LocalReclustering
from sohes_d2.exploration.scoring import EntityScorer

from detectron2.modeling import META_ARCH_REGISTRY

REPOSITORY = Path(__file__).parents[2]
CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
EXPLORATION = [path for path in CONFIGS if path.parent.name == "exploration"]
TRAINING = [path for path in CONFIGS if path.parent.name not in ("exploration", "pretraining")]


def defaults():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_sohes_config(cfg)
    return cfg


def test_there_are_configs():
    assert EXPLORATION and TRAINING


def load(path):
    cfg = defaults()
    cfg.merge_from_file(str(path))
    return cfg


def relative(path):
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("path", EXPLORATION, ids=relative)
def test_every_labeling_config_builds(path):
    cfg = load(path)
    labeler = PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor())
    written = yaml.safe_load(path.read_text())["EXPLORATION"]
    assert cfg.EXPLORATION.FEATURES.NAME == written["FEATURES"]["NAME"]
    assert list(labeler.theta_merge) == written.get("THETA_MERGE", [])
    assert labeler.looks.leaves == written.get("LEAVES", {}).get("NAME", "superpixels")


def test_the_papers_config_matches_the_paper():
    labeler = PseudoLabeler.from_cfg(
        load(REPOSITORY / "configs" / "exploration" / "sohes_dino_vitb8.yaml"), extractor=ColorTextureExtractor()
    )
    looks = labeler.looks
    assert (looks.leaves, looks.border_weights, looks.size_powers) == ("grid", (0.0,), (0.0,))
    assert labeler.theta_merge == (0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
    assert labeler.reclustering.enabled and not labeler.reclustering.large
    assert labeler.mask_filter.nms_threshold == 0.9


@pytest.mark.parametrize("path", TRAINING, ids=relative)
def test_every_training_config_builds(path):
    cfg = load(path)
    with torch.device("meta"):  # allocates no weights, since some models are large
        model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    names = {name for name, _ in model.named_parameters()}
    if cfg.MODEL.META_ARCHITECTURE == "BorderStudent":
        assert model.student.channels == tuple(cfg.MODEL.BORDER_NETWORK.CHANNELS) and model.momentum < 1
        return
    segmenter = getattr(model, "student", model)
    predictor = segmenter.sem_seg_head.predictor
    num_queries = predictor.query_feat.num_embeddings
    assert num_queries == cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES
    assert segmenter.inference.max_masks == cfg.TEST.DETECTIONS_PER_IMAGE
    assert any("ancestor_head" in name for name in names)
    assert segmenter.size_divisibility == 32
    is_vit = cfg.MODEL.BACKBONE.NAME == "build_vit_adapter_backbone"
    assert any("backbone.vit." in name for name in names) == is_vit


def test_quick_schedules_are_quick():
    for path in TRAINING:
        if path.parent.name == "quick_schedules":
            cfg = load(path)
            assert path.stem.endswith("instant_test")
            assert cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.MAX_ITER <= 10 and cfg.INPUT.IMAGE_SIZE <= 128


def test_unknown_keys_are_refused(tmp_path):
    path = tmp_path / "typo.yaml"
    path.write_text("VERSION: 2\nEXPLORATION:\n  LOCAL_RECLUSTERING:\n    ENABLE: True\n")
    with pytest.raises(KeyError, match="EXPLORATION.LOCAL_RECLUSTERING.ENABLE"):
        defaults().merge_from_file(str(path))


def test_keywords_and_config_have_the_same_defaults():
    from_cfg = PseudoLabeler.from_cfg(defaults(), extractor=ColorTextureExtractor())
    assert from_cfg.looks == Looks()
    assert from_cfg.scorer == EntityScorer()
    assert from_cfg.reclustering == LocalReclustering()
    assert from_cfg.mask_filter == MaskFilter()
    assert from_cfg.describe() == PseudoLabeler(ColorTextureExtractor()).describe()

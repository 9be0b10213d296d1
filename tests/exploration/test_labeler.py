"""Self-exploration end to end on small drawn scenes with a known answer."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from detectron2.config import get_cfg

from sohes_d2 import add_sohes_config
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.exploration.filtering import MaskFilter
from sohes_d2.exploration.labeler import PseudoLabeler, fill_holes
from sohes_d2.exploration.refinement import REFINERS
from sohes_d2.exploration.scoring import EntityScorer
from sohes_d2.exploration.zoom import Zoom
from sohes_d2.structures.masks import decode_masks, encode_masks, iou_matrix

from .test_proposals import proposal


def scene() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(image, whole, part, other): a red square with a yellow square in it, and a blue square, on grey."""
    image = np.full((120, 180, 3), 128, np.uint8)
    whole, part, other = (np.zeros((120, 180), bool) for _ in range(3))
    whole[20:90, 20:90] = True
    part[40:60, 40:70] = True
    other[30:100, 120:160] = True
    image[whole], image[part], image[other] = (200, 40, 40), (230, 220, 40), (40, 60, 210)
    noise = np.random.default_rng(0).integers(-5, 6, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), whole, part, other


def labeler(**options) -> PseudoLabeler:
    return PseudoLabeler(ColorTextureExtractor(token_budget=1200), **options)


def test_a_known_scene_becomes_the_known_forest():
    image, *truth = scene()
    forest = labeler().generate(image)
    forest.check(theta_cover=0.9)
    iou = iou_matrix(encode_masks(truth), forest.masks)
    found = iou.argmax(axis=1)
    assert (iou.max(axis=1) > 0.95).all()
    assert forest.ancestors()[found[0], found[1]]  # the yellow square is inside the red one
    assert not forest.ancestors()[:, found[2]][found[0]]
    # the drawn entities are the best labels
    assert set(found) <= set(np.argsort(-forest.scores)[:5])


def test_filters_and_duplicates():
    image, *_ = scene()
    forest = labeler(mask_filter=MaskFilter(min_area=400, max_area=0.2, duplicate_iou=0.5, max_masks=6)).generate(image)
    areas = decode_masks(forest.masks).sum(axis=(1, 2))
    assert 0 < len(forest) <= 6
    assert areas.min() >= 400
    assert areas.max() <= 0.2 * 120 * 180
    iou = iou_matrix(forest.masks, forest.masks)
    assert (iou - np.eye(len(forest))).max() <= 0.5
    assert forest.scores.tolist() == sorted(forest.scores.tolist(), reverse=True)


def test_background_that_covers_corners_can_be_dropped():
    background = replace(proposal((0, 0, 50, 60)), mask=np.pad(np.zeros((30, 40), bool), 10, constant_values=True))
    assert MaskFilter().accepts(background, (50, 60))
    assert not MaskFilter(corners=3).accepts(background, (50, 60))
    assert MaskFilter(corners=3).accepts(proposal((0, 0, 40, 60)), (50, 60))  # two corners only
    assert not MaskFilter().accepts(proposal((0, 0, 50, 60)), (50, 60))  # more than 0.9 of the image
    assert not MaskFilter().accepts(proposal((0, 0, 20, 20), agreement=0.4), (50, 60))


def test_the_most_separated_candidates_are_refined():
    proposals = [proposal((0, 0, 9, 9), death=death) for death in (0.5, -1.0, 0.3, 0.3, 0.9)]
    chosen = MaskFilter(max_candidates=3).candidates(proposals)
    assert [p.death for p in chosen] == [-1.0, 0.3, 0.3]
    assert MaskFilter().candidates(proposals) == proposals
    assert MaskFilter().candidates([]) == []


def test_of_duplicates_the_better_score_stays_also_when_not_adjacent():
    masks = np.zeros((3, 10, 30), bool)
    masks[0, :, :20] = True
    masks[1, :, 25:] = True
    masks[2, :, :19] = True
    keep = MaskFilter().best(encode_masks(masks), np.array([0.3, 0.5, 0.9]))
    assert keep.tolist() == [2, 1]


def test_the_steps_compose_to_generate_and_survive_pickling():
    image, *_ = scene()
    whole = labeler()
    worker = pickle.loads(pickle.dumps(PseudoLabeler(None, thetas=whole.thetas)))
    state = pickle.loads(pickle.dumps(worker.explore(image, whole.extractor.extract([image])[0])))
    assert len(state.crops) > 0
    crops = whole.crop_features([image, image], [state, state])
    assert len(crops[0]) == len(state.crops)
    assert np.array_equal(crops[0], crops[1])
    assert worker.finish(image, state, crops[0]).to_coco(1) == whole.generate(image).to_coco(1)


def test_zoom_adds_local_masks_only():
    image, *_ = scene()
    without = labeler(zoom=Zoom(enabled=False, large=False)).generate(image)
    assert set(without.sources) == {"global"}
    assert "local" in labeler().generate(image).sources


@pytest.mark.parametrize("size", [(1, 1), (9, 9), (2, 45)])
def test_images_too_small_for_a_label_give_an_empty_forest(size):
    forest = labeler().generate(np.zeros((*size, 3), np.uint8))
    assert len(forest) == 0
    assert forest.image_size == size


def test_score_prefers_what_stands_out():
    image, whole, part, other = scene()
    scorer = EntityScorer(image)
    entity = replace(proposal((20, 20, 90, 90)), mask=whole[20:90, 20:90])
    shifted = replace(entity, box=(5, 5, 75, 75))
    assert scorer.contrast(entity) > 2 * scorer.contrast(shifted)
    assert scorer(entity) == pytest.approx(0.45 * scorer.contrast(entity))
    assert scorer(replace(entity, agreement=0.5)) == pytest.approx(scorer(entity) / 2)
    assert scorer(replace(entity, death=-1.0)) > scorer(entity)
    # the image's border is no edge
    assert scorer.contrast(proposal((0, 0, 120, 180))) == 0


def test_holes_are_filled_but_not_bays():
    mask = np.ones((7, 9), bool)
    mask[2:4, 2:4] = False
    mask[5:, 6] = False
    filled = fill_holes(mask)
    assert filled[2:4, 2:4].all()
    assert not filled[5:, 6].any()


def test_from_cfg_takes_every_key():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    assert (
        PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor()).describe()
        == PseudoLabeler(ColorTextureExtractor()).describe()
    )
    node = cfg.EXPLORATION
    node.FEATURES.NAME = "color_texture"
    node.FEATURES.TOKEN_BUDGET = 500
    node.THETAS = [0.7, 0.3]
    node.ZOOM.LARGE, node.ZOOM.MAX_CROPS = False, 3
    node.REFINEMENT.NAME = "guided"
    node.REFINEMENT.OPTIONS.radius = 2.5
    node.FILTER.MIN_AREA, node.FILTER.CORNERS = 64, 3
    node.HIERARCHY.THETA_COVER = 0.8
    facts = PseudoLabeler.from_cfg(cfg).describe()
    assert facts["features"]["token_budget"] == 500
    assert facts["thetas"] == [0.7, 0.3]
    assert (facts["zoom"]["large"], facts["zoom"]["max_crops"]) == (False, 3)
    assert (facts["refiner"]["name"], facts["refiner"]["radius"]) == ("guided", 2.5)
    assert (facts["filter"]["min_area"], facts["filter"]["corners"]) == (64, 3)
    assert facts["theta_cover"] == 0.8


def test_bad_settings_name_the_remedy():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.EXPLORATION.REFINEMENT.NAME = "sharp"
    with pytest.raises(ValueError, match="none, "):
        PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor())
    with pytest.raises(ValueError, match="must fall"):
        labeler(thetas=[0.1, 0.5])
    with pytest.raises(ValueError, match="needs thetas"):
        PseudoLabeler(None)
    assert "none" in REFINERS

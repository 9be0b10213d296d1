"""Self-exploration end to end on small synthetic scenes."""

from __future__ import annotations

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from helpers.feature_config import config
from helpers.forest_checks import check_coverage
from PIL import Image
from safetensors.torch import save_file

from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.exploration.border_network import BorderNetwork
from sohes_d2.exploration.candidates import MaskFilter
from sohes_d2.exploration.features import ColorTextureExtractor
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.exploration.looks import Looks
from sohes_d2.exploration.proposals import LocalReclustering
from sohes_d2.exploration.refinement import REFINERS
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import decode_masks, encode_masks, iou_matrix

from .test_looks import PAPER


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


THETAS = [round(0.98 - 0.02 * k, 2) for k in range(40)]


def paper(**options) -> PseudoLabeler:
    """The method of the paper (grid cells, cosine alone, snapshots), with the training-free refiner."""
    return labeler(**{"looks": Looks(**PAPER), "theta_merge": THETAS, "refiner": REFINERS.get("guided")(), **options})


@pytest.mark.parametrize("make", [labeler, paper])
def test_a_known_scene_gives_the_known_forest(make):
    image, *truth = scene()
    forest = make().generate(image)
    check_coverage(forest)
    iou = iou_matrix(encode_masks(truth), forest.masks)
    found = iou.argmax(axis=1)
    assert (iou.max(axis=1) > 0.95).all()
    assert forest.ancestors()[found[0], found[1]]  # the yellow square is inside the red one
    assert not forest.ancestors()[:, found[2]][found[0]]
    # the drawn entities are among the best six labels
    assert set(found) <= set(np.argsort(-forest.scores)[:6])
    assert forest.scores.tolist() == sorted(forest.scores.tolist(), reverse=True)
    assert 0 <= forest.scores.min() <= forest.scores.max() <= 1


def test_any_kind_of_image_and_an_extractor_by_name(tmp_path):
    image = scene()[0][:60, :90].copy()
    Image.fromarray(image).save(tmp_path / "a.png")
    by_name = PseudoLabeler("color_texture")
    expected = PseudoLabeler(ColorTextureExtractor()).generate(image)
    assert len(expected) > 3 and expected.photo is image and expected.file_name == ""
    path = tmp_path / "a.png"
    for given in (path, str(path), Image.open(path), torch.from_numpy(image).permute(2, 0, 1)):
        found = by_name.generate(given)
        assert found.masks == expected.masks and np.array_equal(found.photo, image)
    assert by_name.generate(path).file_name == str(path)
    with pytest.raises(ValueError, match="an image must"):
        by_name.generate(None)
    with pytest.raises(ValueError, match="Did you mean"):
        PseudoLabeler("color_textur")


def test_sources_and_levels_of_masks():
    image, *_ = scene()
    forest = labeler().generate(image)
    assert {"look0"} < set(forest.sources) <= {"look0", "look1", "look2"}
    assert set(forest.levels) == {-1}
    at_thetas = labeler(theta_merge=[0.5, 0.0]).generate(image)
    assert set(at_thetas.levels) == {0, 1}
    assert len(at_thetas) < len(forest)


@pytest.mark.parametrize("make", [labeler, paper])
def test_filters_and_duplicates(make):
    image, *_ = scene()
    forest = make(mask_filter=MaskFilter(min_area=400, max_area_ratio=0.2, nms_threshold=0.5, max_masks=6)).generate(
        image
    )
    areas = decode_masks(forest.masks).sum(axis=(1, 2))
    assert 0 < len(forest) <= 6
    assert areas.min() >= 400
    assert areas.max() <= 0.2 * 120 * 180
    iou = iou_matrix(forest.masks, forest.masks)
    assert (iou - np.eye(len(forest))).max() <= 0.5
    assert forest.scores.tolist() == sorted(forest.scores.tolist(), reverse=True)


@pytest.mark.parametrize("make", [labeler, paper])
def test_masks_that_cover_corners_are_dropped_on_request(make):
    image, *_ = scene()
    most = []
    for corners in (0, 3, 1):
        # holes are not filled, since the filled background is the whole photo, which is too large for a label
        found = make(mask_filter=MaskFilter(corners=corners), fill_holes=False).generate(image)
        masks = decode_masks(found.masks)
        most.append(int(masks[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(axis=1).max()))
    assert most[0] == 4
    assert most[1] <= 2
    assert most[2] == 0


@pytest.mark.parametrize("make", [labeler, paper])
@pytest.mark.parametrize("size", [(240, 360), (241, 355)])
def test_large_photos_are_downsized_and_get_full_size_masks(make, size):
    small, *truth = scene()
    image = cv2.resize(small, size[::-1], interpolation=cv2.INTER_NEAREST)
    masks = [cv2.resize(mask.view(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0 for mask in truth]
    forest = make(max_pixels=120 * 180).generate(image)
    check_coverage(forest)
    assert forest.image_size == size
    assert {tuple(mask["size"]) for mask in forest.masks} == {size}
    assert (iou_matrix(encode_masks(masks), forest.masks).max(axis=1) > 0.9).all()
    # areas are in pixels of the full-size photo
    assert decode_masks(forest.masks).sum(axis=(1, 2)).min() >= 0.8 * MaskFilter().min_area
    least = make(max_pixels=120 * 180, mask_filter=MaskFilter(min_area=5000)).generate(image)
    assert decode_masks(least.masks).sum(axis=(1, 2)).min() >= 4500


def test_coverage_of_the_trees_is_that_of_the_masks():
    image, *_ = scene()
    forest = labeler().generate(image)
    again = Forest.from_masks(forest.masks, forest.image_size, 0.9)
    assert forest.parents.tolist() == again.parents.tolist()


@pytest.mark.parametrize("make", [labeler, paper])
def test_the_steps_equal_generate_after_pickling(make):
    image, *_ = scene()
    whole = make()
    worker = pickle.loads(pickle.dumps(whole))
    worker.extractor = None
    evidence = whole.evidence([image, image])
    assert np.array_equal(evidence[0].features, evidence[1].features)
    assert evidence[0].features.dtype == np.float32
    expected = whole.generate(image).to_coco(1)
    assert worker.finish(image, *evidence[0]).to_coco(1) == expected
    assert not worker.needs_extractor_to_finish


def test_features_of_a_device_are_in_half_precision():
    image, *_ = scene()
    whole = labeler()
    exact = whole.evidence([image])[0].features
    whole.extractor.device = torch.device("meta")
    halved = whole.evidence([image])[0].features
    assert halved.dtype == np.float16
    np.testing.assert_allclose(halved, exact, atol=1e-2)


def test_local_reclustering_adds_local_masks_only():
    image, *_ = scene()
    assert set(paper().generate(image).sources) == {"global"}
    closer = paper(reclustering=LocalReclustering(enabled=True, large=True))
    assert closer.needs_extractor_to_finish
    assert set(closer.generate(image).sources) == {"global", "local"}


@pytest.mark.parametrize("size", [(1, 1), (9, 9), (2, 45)])
@pytest.mark.parametrize("make", [labeler, paper])
def test_images_too_small_for_a_label_give_an_empty_forest(make, size):
    forest = make().generate(np.zeros((*size, 3), np.uint8))
    assert len(forest) == 0
    assert forest.image_size == size


def leaves_of(node, prefix=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves_of(value, (*prefix, key))
        else:
            yield (*prefix, key)


CHANGED = {
    "LEAVES.NAME": "grid", "LEAVES.SMOOTHING": 2.0, "LEAVES.WINDOW": 5,
    "BORDER.SCALES": [3.0], "BORDER.HALF": 7.0, "BORDER.LEARNED_SHARE": 0.3,
    "LOOKS.SCALES": [1.0, 1.0], "LOOKS.BORDER_WEIGHTS": [0.5, 1.5], "LOOKS.SIZE_POWERS": [0.0, 0.7],
    "THETA_MERGE": [0.7, 0.3], "MAX_PIXELS": 1234,
    "SCORE.NOISE": 0.2, "SCORE.AGREEMENT_POWER": 0.7, "SCORE.REDUNDANCY": 0.1, "SCORE.REDUNDANCY_POWER": 2.0,
    "SCORE.SURROUND_POWER": 0.2, "SCORE.FLOOR": 0.1, "SCORE.TAIL": 0.02, "SCORE.MIDPOINT": 0.4, "SCORE.SLOPE": 2.0,
    **{
        f"LOCAL_RECLUSTERING.{key}": value
        for key, value in {
            "ENABLED": True, "LARGE": True, "SMALL_AREA_RATIO": 0.02, "MIN_SIDE": 9, "CONTEXT": 1.5, "CROP_SIZE": 128,
            "INSIDE": 0.8, "MAX_CROPS": 3, "NMS_THRESHOLD": 0.6,
        }.items()
    },
    "REFINEMENT.NAME": "guided", "REFINEMENT.FILL_HOLES": False,
    "FILTER.MIN_AREA": 64, "FILTER.MAX_AREA_RATIO": 0.8, "FILTER.CORNERS": 3, "FILTER.MIN_AGREEMENT": 0.4,
    "FILTER.NMS_THRESHOLD": 0.8, "FILTER.MAX_CANDIDATES": 77, "FILTER.MAX_MASKS": 55,
    "HIERARCHY.THETA_COVER": 0.8,
}  # fmt: skip


def test_from_cfg_reads_every_key(tmp_path):
    save_file(BorderNetwork((4, 6)).state_dict(), tmp_path / "borders.safetensors")
    changed = {**CHANGED, "BORDER.WEIGHTS": str(tmp_path / "borders.safetensors")}
    cfg = config()
    default = PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor()).describe()
    assert default == PseudoLabeler(ColorTextureExtractor()).describe()
    node = cfg.EXPLORATION
    shown = {"MAX_CHILD_AREA", "MAX_ONLY_CHILD_AREA", "MAX_OVERLAP", "MAX_DEPTH", "RANK_SCALE"}  # unused in labeling
    assert {".".join(key) for key in leaves_of(node) if key[0] != "FEATURES" and key[-1] not in shown} == set(changed)
    cfg.merge_from_list([part for key, value in changed.items() for part in (f"EXPLORATION.{key}", value)])
    node.FEATURES.NAME = "color_texture"
    node.FEATURES.TOKEN_BUDGET = 500
    node.REFINEMENT.OPTIONS.radius = 2.5
    facts = PseudoLabeler.from_cfg(cfg).describe()
    assert facts["features"]["token_budget"] == 500
    assert (facts["refiner"]["name"], facts["refiner"]["radius"]) == ("guided", 2.5)
    for key, value in CHANGED.items():
        group, _, name = key.lower().rpartition(".")
        if key in ("LEAVES.NAME", "REFINEMENT.NAME"):
            found = facts["looks"]["leaves"] if key == "LEAVES.NAME" else facts["refiner"]["name"]
        elif group == "leaves":
            found = facts["looks"][name]
        elif key == "BORDER.LEARNED_SHARE":
            found = facts["borders"]["share"]
        elif group == "border":
            found = facts["looks"][f"border_{name}"]
        else:
            found = facts[group][name] if group in facts and group else facts[name]
        assert found == value, key
    assert facts["borders"]["weights"] == "file:borders.safetensors"
    assert json.loads(json.dumps(facts)) == facts
    assert PseudoLabeler.from_cfg(cfg, extractor=None).borders is None  # workers get the predicted borders


def test_invalid_settings_give_the_remedy():
    cfg = config()
    cfg.EXPLORATION.REFINEMENT.NAME = "sharp"
    with pytest.raises(ValueError, match="none, "):
        PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor())
    cfg = config()
    cfg.EXPLORATION.LOOKS.SCALES = [1.0]
    with pytest.raises(ValueError, match="as many SCALES"):
        PseudoLabeler.from_cfg(cfg, extractor=ColorTextureExtractor())
    with pytest.raises(ValueError, match="must fall"):
        labeler(theta_merge=[0.1, 0.5])
    with pytest.raises(ValueError, match="must fall"):
        labeler(theta_merge=[0.5, 0.5])
    closer = LocalReclustering(enabled=True)
    for options in ({}, {"looks": Looks(**PAPER)}, {"theta_merge": [0.5]}):
        with pytest.raises(ValueError, match="LOCAL_RECLUSTERING needs LEAVES.NAME grid and THETA_MERGE"):
            labeler(reclustering=closer, **options)
    assert "none" in REFINERS


@pytest.mark.parametrize(
    ("make", "masks", "recall", "score"),
    [(labeler, 2466, 0.444, 0.913), (paper, 351, 0.291, 0.278)],
)
def test_defaults_on_generated_photos(make, masks, recall, score):
    """Detects changes of constants in score, filters and refiner, to which drawn squares are insensitive."""
    counts, hits, total, scores = 0, 0, 0, []
    for index in range(3):
        image, truth = generate_scene(0, index, (128, 160))
        forest = make().generate(image)
        ious = iou_matrix(truth.masks, forest.masks[:50])
        hits += sum(np.count_nonzero(ious.max(axis=1) > threshold) for threshold in np.arange(0.5, 1, 0.05))
        total += 10 * len(truth)
        counts += len(forest)
        scores.extend(forest.scores[:50])
    assert counts == pytest.approx(masks, rel=0.02)
    assert hits / total == pytest.approx(recall, abs=0.02)
    assert np.mean(scores) == pytest.approx(score, abs=0.01)

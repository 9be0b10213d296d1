"""The predictor: same results as the evaluation, errors about unusable models, fusion with the merge trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.tiny_training import sohes_cfg, tiny_cfg
from PIL import Image
from safetensors.torch import save_file

from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.data.training.mapper import PseudoLabelDatasetMapper
from sohes_d2.errors import ConfigError, ImageReadError, WeightsError
from sohes_d2.exploration.labeler import PseudoLabeler
from sohes_d2.inference.predictor import Fusion, SOHESPredictor, _batches_of_one_size
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.modeling import build_model


def photo(k, size=(48, 64)):
    return generate_scene(0, k, size)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder as written by training, with random weights."""
    folder = tmp_path_factory.mktemp("model")
    cfg = sohes_cfg(folder)
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    torch.manual_seed(0)
    model = build_model(cfg)
    (folder / "config.yaml").write_text(cfg.dump())
    torch.save({"model": model.state_dict(), "iteration": 9}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    return folder


@pytest.fixture(scope="module")
def predictor(folder):
    return SOHESPredictor(folder, device="cpu")


def same(a, b):
    return (
        a.image_size == b.image_size
        and [m["counts"] for m in a.masks] == [m["counts"] for m in b.masks]
        and np.array_equal(a.parents, b.parents)
        and np.allclose(a.scores, b.scores, atol=1e-5)
    )


def test_the_forest_is_that_of_the_evaluation(predictor, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(photo(0)).save(path)
    mapper = PseudoLabelDatasetMapper(predictor.cfg, is_train=False)
    record = {"file_name": str(path), "image_id": 1, "height": 48, "width": 64}
    model_input = mapper(record)
    with torch.no_grad():
        expected = predictor.model([model_input])[0]["forest"]
    assert len(expected) > 0
    forest = predictor(photo(0))
    assert same(forest, expected) and same(predictor(path), expected) and same(predictor(str(path)), expected)
    assert same(predictor(Image.open(path)), expected)
    assert forest.image_size == (48, 64)
    forest.check()
    assert not predictor.model.training


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_images_are_prepared_as_by_the_mapper(folder, tmp_path, channels):
    path = tmp_path / "a.png"
    Image.fromarray(photo(3, (50, 90))).save(path)
    predictor = SOHESPredictor(folder, device="cpu")
    predictor.cfg.defrost()
    predictor.cfg.INPUT.FORMAT = channels
    mapped = PseudoLabelDatasetMapper(predictor.cfg, is_train=False)(
        {"file_name": str(path), "height": 50, "width": 90}
    )
    prepared = predictor.prepare(photo(3, (50, 90)))
    assert torch.equal(prepared["image"], mapped["image"])
    assert prepared["image"].shape == (3, 53, 96)  # the shorter side would be 64, but the longer is limited to 96
    assert (prepared["height"], prepared["width"]) == (50, 90)


def test_batches_do_not_change_results(predictor):
    sizes = [(48, 64), (64, 48), (48, 64), (48, 64), (40, 40), (64, 48)]
    images = [photo(k, size) for k, size in enumerate(sizes)]
    alone = [predictor(image) for image in images]
    together = predictor.predict(images, batch_size=2)
    assert [forest.image_size for forest in together] == sizes
    assert all(same(a, b) for a, b in zip(alone, together))
    assert predictor.predict([], batch_size=4) == []
    assert _batches_of_one_size(sizes, 2) == [[0, 2], [1, 5], [3], [4]]


def test_weights_are_found_in_the_documented_order(folder, tmp_path):
    config = (folder / "config.yaml").read_text()
    state = torch.load(folder / "model_final.pth")["model"]
    (tmp_path / "config.yaml").write_text(config)
    with pytest.raises(WeightsError, match="has no weights"):
        SOHESPredictor(tmp_path, device="cpu")
    torch.save({"model": state}, tmp_path / "model_final.pth")
    torch.save({"model": state}, tmp_path / "model_0000004.pth")
    assert SOHESPredictor(tmp_path).cfg.MODEL.WEIGHTS == str(tmp_path / "model_final.pth")
    (tmp_path / "last_checkpoint").write_text("../elsewhere/model_0000004.pth")
    assert SOHESPredictor(tmp_path).cfg.MODEL.WEIGHTS == str(tmp_path / "model_0000004.pth")
    save_file(state, tmp_path / "model.safetensors")
    predictor = SOHESPredictor(str(tmp_path))
    assert predictor.cfg.MODEL.WEIGHTS == str(tmp_path / "model.safetensors")
    loaded = predictor.model.state_dict()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_config_and_weights_make_a_predictor(folder, predictor):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(WeightsError, match="set MODEL.WEIGHTS"):
        SOHESPredictor(cfg)
    other = SOHESPredictor(cfg, weights=folder / "model_final.pth")
    assert same(other(photo(1)), predictor(photo(1)))
    assert cfg.MODEL.WEIGHTS == ""  # the caller's config is unchanged


def test_weights_of_another_model_are_refused(folder, predictor, tmp_path):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES = 7
    with pytest.raises(WeightsError, match=r"2 of its \d+ tensors.*\(12, 32\), not \(7, 32\).*config.yaml"):
        SOHESPredictor(cfg)
    state = torch.load(folder / "model_final.pth")["model"]
    kept = {key: value for key, value in state.items() if "ancestor" not in key}
    assert len(kept) < len(state)
    torch.save({"model": kept}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"no .*ancestor"):
        SOHESPredictor(predictor.cfg, weights=tmp_path / "a.pth")


def test_errors_are_explained(predictor, folder, tmp_path):
    with pytest.raises(ConfigError, match="is not a folder with a config.yaml"):
        SOHESPredictor(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="has no config.yaml"):
        SOHESPredictor(tmp_path)
    with pytest.raises(ConfigError, match="not known to torch"):
        SOHESPredictor(folder, device="gpu")
    with pytest.raises(WeightsError, match="none.pth' does not exist"):
        SOHESPredictor(folder, weights="none.pth")
    (tmp_path / "page.pth").write_text("<html>")
    with pytest.raises(WeightsError, match="not a torch or safetensors file"):
        SOHESPredictor(folder, weights=tmp_path / "page.pth")
    for wrong in (photo(0)[..., :2], np.zeros((0, 5, 3), np.uint8), 3):
        with pytest.raises(ValueError, match="an image must"):
            predictor(wrong)
    with pytest.raises(ImageReadError, match="does not exist"):
        predictor("none.jpg")
    with pytest.raises(ValueError, match="batch_size"):
        predictor.predict([], batch_size=0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_config_runs_on_the_cpu_unless_a_gpu_is_requested(folder):
    predictor = SOHESPredictor(folder)
    assert predictor.device.type == "cpu"
    with pytest.raises(ConfigError, match="not available to torch"):
        SOHESPredictor(folder, device="cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(folder, predictor):
    forest = SOHESPredictor(folder, device="cuda").predict([photo(0), photo(1)], batch_size=2)
    expected = predictor.predict([photo(0), photo(1)])
    assert [len(f) for f in forest] == [len(f) for f in expected]
    assert np.allclose(forest[0].scores, expected[0].scores, atol=1e-2)


def test_models_without_hierarchy_use_coverage(tmp_path):
    cfg = tiny_cfg(tmp_path)
    torch.manual_seed(0)
    torch.save(build_model(cfg).state_dict(), tmp_path / "tiny.pth")
    forest = SOHESPredictor(cfg, weights=tmp_path / "tiny.pth")(photo(0))
    assert len(forest) == 1 and forest.scores[0] == pytest.approx(0.9)


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
def cfg(predictor):
    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    cfg.EXPLORATION.FEATURES.NAME = "color_texture"
    return cfg


def counts(forest):
    return [mask["counts"] for mask in forest.masks]


def test_the_predictor_uses_the_masks_that_the_key_names(cfg):
    image = photo(0)
    found = {}
    for source in ("queries", "trees", "both"):
        cfg.TEST.MASKS_FROM = source
        found[source] = SOHESPredictor(cfg)(image)
    trees = PseudoLabeler.from_cfg(cfg).generate(image)
    assert counts(found["trees"]) == counts(trees)
    expected = Fusion.from_config(cfg)(trees, found["queries"])
    assert counts(found["both"]) == counts(expected) and np.array_equal(found["both"].parents, expected.parents)
    assert np.allclose(found["both"].scores, expected.scores, atol=1e-5)
    assert "model" in found["both"].sources and "look0" in found["both"].sources
    assert set(found["queries"].sources) == {"model"}

    cfg.TEST.MIN_SCORE = float(np.median(trees.scores))
    for source in ("trees", "both"):
        cfg.TEST.MASKS_FROM = source
        scores = SOHESPredictor(cfg)(image).scores
        assert 0 < len(scores) < len(found[source]) and scores.min() >= cfg.TEST.MIN_SCORE
    cfg.TEST.MASKS_FROM = "tree"
    with pytest.raises(ConfigError, match="trees"):
        SOHESPredictor(cfg)

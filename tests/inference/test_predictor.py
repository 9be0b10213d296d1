"""The predictor: same results as the evaluation for any batch size, and errors about unusable models."""

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
from sohes_d2.inference.predictor import SOHESPredictor, _batches_of_one_size

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

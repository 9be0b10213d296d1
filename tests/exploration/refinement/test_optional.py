"""Refiners with optional packages: calls (with stubs), and errors if a package is missing."""

from __future__ import annotations

import json
import logging
import sys
import types

import numpy as np
import pytest

from sohes_d2.exploration.refinement import REFINERS, optional


def square(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """A red square on blue, and a mask that is the square moved by three pixels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 2] = 200
    image[10:30, 20:40] = (220, 30, 30)
    mask = np.zeros((height, width), dtype=bool)
    mask[10:30, 23:43] = True
    return image, mask


class FakeCRF:
    """Returns the unary probabilities and records its arguments."""

    last: FakeCRF

    def __init__(self, width: int, height: int, labels: int):
        self.shape = (height, width, labels)
        FakeCRF.last = self

    def setUnaryEnergy(self, energy):  # noqa: N802
        assert energy.dtype == np.float32 and energy.flags.c_contiguous
        self.energy = energy

    def addPairwiseGaussian(self, **kernel):  # noqa: N802
        self.smooth = kernel

    def addPairwiseBilateral(self, rgbim, **kernel):  # noqa: N802
        self.image, self.appearance = rgbim, kernel

    def inference(self, iterations: int):
        self.iterations = iterations
        return np.exp(-self.energy)


@pytest.fixture
def fake_crf(monkeypatch):
    package, module = types.ModuleType("pydensecrf"), types.ModuleType("pydensecrf.densecrf")
    module.DenseCRF2D = FakeCRF
    package.densecrf = module
    monkeypatch.setitem(sys.modules, "pydensecrf", package)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", module)


def test_missing_crf_package_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match=r"pip install 'sohes_d2\[crf\]'"):
        REFINERS.get("crf")()


def test_crf_passes_probabilities_and_kernels_to_the_package(fake_crf):
    image, mask = square()
    refined = REFINERS.get("crf")(confidence=0.8, softness=0).refine(image, mask)
    assert np.array_equal(refined, mask)  # the stub ignores the kernels
    last = FakeCRF.last
    assert last.shape == (40, 60, 2) and last.iterations == 10
    assert last.smooth == {"sxy": 3.0, "compat": 7.0}
    assert last.appearance == {"sxy": 50.0, "srgb": 5.0, "compat": 10.0}
    assert np.array_equal(last.image, image)
    assert json.loads(json.dumps(REFINERS.get("crf")().describe()))["confidence"] == 0.8
    inside = np.exp(-last.energy[1]).reshape(40, 60)
    assert np.allclose(inside[mask], 0.8) and np.allclose(inside[~mask], 0.2)


def test_crf_shrinks_large_crops_and_returns_their_size(fake_crf):
    image, mask = np.zeros((100, 300, 3), np.uint8), np.zeros((100, 300), dtype=bool)
    mask[20:80, 60:240] = True
    refined = REFINERS.get("crf")(max_side=150, softness=0).refine(image, mask)
    assert FakeCRF.last.shape == (50, 150, 2)
    assert refined.shape == mask.shape and (refined ^ mask).sum() < 0.05 * mask.sum()


def test_refiners_get_some_surroundings_for_any_cell_size(fake_crf):
    assert REFINERS.get("crf")().reach(3) == 24 and REFINERS.get("crf")().reach(20) == 40


def test_crf_keeps_masks_without_an_edge(fake_crf):
    image = np.zeros((4, 5, 3), np.uint8)
    for value in (False, True):
        assert np.array_equal(REFINERS.get("crf")().refine(image, np.full((4, 5), value)), np.full((4, 5), value))


@pytest.mark.parametrize(
    "values", [{"confidence": 1.0}, {"confidence": 0.5}, {"iterations": 0}, {"max_side": 0}, {"softness": -1}]
)
def test_crf_refuses_values_out_of_range(fake_crf, values):
    with pytest.raises(ValueError, match=next(iter(values))):
        REFINERS.get("crf")(**values)


def test_real_crf_moves_a_mask_onto_the_edges_of_the_photo():
    pytest.importorskip("pydensecrf.densecrf", reason="the optional package pydensecrf2 is not installed")
    image, mask = square()
    refined = REFINERS.get("crf")().refine(image, mask)
    truth = np.zeros_like(mask)
    truth[10:30, 20:40] = True
    assert (refined & truth).sum() / (refined | truth).sum() > 0.98
    assert np.array_equal(refined, REFINERS.get("crf")().refine(image, mask))  # deterministic


class FakeNetwork:
    """Returns the mask unchanged and records its arguments."""

    def __init__(self, device, model_folder, download_and_check_model):
        if download_and_check_model:
            with open(f"{model_folder}/model", "wb"):
                raise ConnectionError("no network")
        self.device, self.folder = device, model_folder

    def refine(self, image, mask, fast, L):  # noqa: N803
        self.image, self.fast, self.side = image, fast, L
        return mask


@pytest.fixture
def fake_cascadepsp(monkeypatch):
    package = types.ModuleType("segmentation_refinement")
    package.Refiner = FakeNetwork
    monkeypatch.setitem(sys.modules, "segmentation_refinement", package)


def test_missing_cascadepsp_package_gives_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_refinement", None)
    with pytest.raises(ImportError, match=r"pip install 'sohes_d2\[cascadepsp\]'"):
        REFINERS.get("cascadepsp")()


def test_cascadepsp_names_the_weights_file_and_its_path(fake_cascadepsp, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        REFINERS.get("cascadepsp")(weights=str(tmp_path))
    assert str(tmp_path / "model") in str(caught.value) and optional.WEIGHTS_URL in str(caught.value)


def test_cascadepsp_leaves_no_empty_file_when_the_download_fails(fake_cascadepsp, tmp_path, monkeypatch):
    monkeypatch.setattr(optional, "DEFAULT_FOLDER", str(tmp_path))
    with pytest.raises(RuntimeError, match="no network.*by hand"):
        REFINERS.get("cascadepsp")(weights="download")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("as_file", [False, True])
def test_cascadepsp_warns_that_its_weights_used_human_masks(fake_cascadepsp, tmp_path, caplog, as_file):
    (tmp_path / "model").write_bytes(b"weights")
    with caplog.at_level(logging.WARNING):
        refiner = REFINERS.get("cascadepsp")(
            weights=str(tmp_path / "model" if as_file else tmp_path), fast=True, max_side=300
        )
    assert "masks drawn by people" in caplog.text
    assert refiner.training_free is False and refiner._network.folder == str(tmp_path)
    image, mask = square()
    assert np.array_equal(refiner.refine(image, mask), mask)
    assert refiner.describe() == {"training_free": False, "fast": True, "max_side": 300}
    assert np.array_equal(refiner._network.image, image)  # RGB
    assert refiner._network.fast is True and refiner._network.side == 300


def test_cascadepsp_skips_masks_that_the_network_cannot_process(fake_cascadepsp, tmp_path):
    (tmp_path / "model").write_bytes(b"weights")
    refiner = REFINERS.get("cascadepsp")(weights=str(tmp_path))
    sliver = np.zeros((1, 400), dtype=bool)
    sliver[0, :7] = True
    assert np.array_equal(refiner.refine(np.zeros((1, 400, 3), np.uint8), sliver), sliver)
    assert not hasattr(refiner._network, "image")
    with pytest.raises(ValueError, match="max_side"):
        REFINERS.get("cascadepsp")(weights=str(tmp_path), max_side=64)

"""Training-free features: kernel approximation, colour and brightness, determinism; and jointly with a ViT's."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.feature_config import photos
from helpers.snapshots import snapshots

from sohes_d2.exploration.features import ColorTextureExtractor, FeatureExtractor, JointExtractor
from sohes_d2.exploration.features.color_texture import fourier_features, gradient_texture
from sohes_d2.exploration.merging import merge_regions
from sohes_d2.exploration.regions import RegionGraph


def test_fourier_features_approximate_the_gaussian_kernel():
    values = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    features = fourier_features(values, dims=4096, sigma=0.5, seed=1)
    kernel = np.exp(-((values[:, None] - values[None]) ** 2).sum(axis=2) / (2 * 0.5**2))
    assert np.abs(features @ features.T - kernel).max() < 0.1


def test_dark_and_bright_of_one_hue_differ():
    image = np.zeros((60, 60, 3), np.uint8)
    image[:, :30] = (40, 0, 0)
    image[:, 30:] = (200, 0, 0)  # same direction in RGB: the cosine of the colours is 1
    extractor = ColorTextureExtractor(token_budget=400, texture_weight=0, position_weight=0)
    features = extractor.extract([image])[0]
    assert features.shape == (20, 20, 48)
    history = merge_regions(features.reshape(400, 48), RegionGraph.of_grid(20, 20))
    labels = snapshots(history, [0.5])[0].reshape(20, 20)
    assert len(np.unique(labels[:, :10])) == 1
    assert len(np.unique(labels[:, 10:])) == 1
    assert labels[0, 0] != labels[0, -1]


def test_texture_distinguishes_stripes_from_their_mean():
    lab = np.full((32, 64, 3), 0.5, np.float32)
    lab[:, 32:, 0] += 0.2 * (-1.0) ** (np.arange(32) // 2)
    texture = gradient_texture(lab, [1.0])
    assert texture.shape == (32, 64, 6)
    assert texture[16, 8].max() < 1e-3
    # vertical stripes: strong across (direction 0), weak along (direction 2)
    assert texture[16, 48, 0] > 3 * texture[16, 48, 2]


def test_batches_and_repeats_give_the_same_bits():
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(2)]
    extractor = ColorTextureExtractor(token_budget=100)
    both = extractor.extract(images)
    assert both.dtype == np.float32
    assert np.array_equal(both[1], extractor.extract([images[1]])[0])
    assert np.array_equal(both, ColorTextureExtractor(token_budget=100).extract(images))


def test_tiny_and_extreme_images():
    extractor = ColorTextureExtractor(token_budget=64)
    assert extractor.extract([np.zeros((1, 1, 3), np.uint8)]).shape[:3] == (1, 1, 1)
    assert extractor.extract([np.zeros((3000, 2, 3), np.uint8)]).shape[:3] == (1, 64, 1)


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
    found = JointExtractor(Fixed(fine), Fixed(coarse), weight=weight, shrink=1).extract_at(photos(1, 48, 72), (2, 2))[0]
    assert found.shape == (2, 2, 12) and found.dtype == np.float32
    for a, b in (((0, 0), (1, 1)), ((0, 1), (1, 0))):
        expected = (1 - weight) * cosine(fine[a], fine[b]) + weight * cosine(coarse[a], coarse[b])
        assert cosine(found[a], found[b]) == pytest.approx(expected, abs=1e-6)


def test_the_coarse_part_is_resampled_between_cell_centres():
    coarse = np.zeros((1, 2, 2))
    coarse[0, 0], coarse[0, 1] = [1, 0], [0, 1]
    fine = np.ones((2, 4, 1))
    found = JointExtractor(Fixed(fine), Fixed(coarse), weight=1.0, shrink=2).extract_at(photos(1, 48, 72), (2, 4))[0]
    shares = np.array([1, 0.75, 0.25, 0])  # weights of the left cell at the centres of four columns
    expected = np.stack([shares, 1 - shares], axis=-1)
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(found[..., 1:], expected[None].repeat(2, 0), atol=1e-6)


@pytest.mark.parametrize("settings", [{"weight": -0.1}, {"weight": 1.1}, {"shrink": 0.5}])
def test_joint_refuses_invalid_settings(settings):
    with pytest.raises(ValueError, match=r"weight in \[0, 1\] and a shrink from 1 on"):
        JointExtractor(Fixed(np.ones((1, 1, 1))), Fixed(np.ones((1, 1, 1))), **settings)

"""Training-free features: kernel approximation, colour and brightness, determinism."""

from __future__ import annotations

import numpy as np

from sohes_d2.exploration.features import ColorTextureExtractor
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
    labels = merge_regions(features.reshape(400, 48), RegionGraph.of_grid(20, 20)).labels([0.5])[0].reshape(20, 20)
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

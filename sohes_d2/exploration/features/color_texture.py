"""Training-free features: colour, texture and position, alone or concatenated with those of a small network.

The clustering compares sums of features by their cosine. For raw colours it depends only on the direction (dark red
equals bright red); for kernel features it is the normalised mean kernel similarity of two sets of pixels. So each cue
is mapped to random Fourier features of a Gaussian kernel (Rahimi and Recht, NeurIPS 2007), and a cell's feature is the
mean over its pixels. Cues are concatenated, which adds their kernels, weighted by the squares of the weights.

Colour and texture locate borders to the pixel, but do not group what belongs together; the tokens of a small network
help with grouping, on a coarser grid (`JointExtractor`).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from .base import FEATURE_EXTRACTORS, FeatureExtractor, check_images
from .vit import load_vit_file, vit_settings

_SEED = 2024  # of the random Fourier features; fixed, so that results are the same on every machine


class ColorTextureExtractor(FeatureExtractor):
    """Lab colour, smoothed gradient magnitudes at several scales and directions, and position.

    The defaults are our own, chosen for the recall of the labels on the training split of BSDS500. The cells are
    finer than a ViT's, since only the averaging over a cell blurs the features.

    Args:
        token_budget: maximum number of cells per image.
        samples: pixels per cell side after resizing; texture is measured on these, features are averaged over them.
        dims: random Fourier features per cue.
        color_sigma: bandwidth of the colour kernel, with L, a and b divided by 100.
        texture_sigma: bandwidth of the texture kernel, on square roots of gradient magnitudes of the same colours.
        texture_weight: weight of texture relative to colour's 1; 0 omits it.
        position_sigma: bandwidth of the position kernel, as a share of the longer image side.
        position_weight: weight of position relative to colour's 1; 0 omits it.
        scales: standard deviations of the gradients' Gaussians, in resized pixels.
    """

    name = "color_texture"
    cell = 4  # of zoomed crops: 64 x 64 cells in 256 pixels; at the whole image's resolution crops add little
    default_token_budget = 17400  # about 3 pixels per cell in a 481 x 321 photo

    def __init__(
        self,
        *,
        token_budget: int = default_token_budget,
        samples: int = 2,
        dims: int = 48,
        color_sigma: float = 0.1,
        texture_sigma: float = 0.3,
        texture_weight: float = 0.5,
        position_sigma: float = 0.3,
        position_weight: float = 0.7,
        scales: Sequence[float] = (1.0, 2.0),
    ):
        self.token_budget = token_budget
        self.samples = samples
        self.dims = dims
        self.color_sigma = color_sigma
        self.texture_sigma = texture_sigma
        self.texture_weight = texture_weight
        self.position_sigma = position_sigma
        self.position_weight = position_weight
        self.scales = tuple(float(scale) for scale in scales)

    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        check_images(images)
        return np.stack([self._extract_one(image, grid) for image in images])

    def _extract_one(self, image: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        rows, cols = grid
        side = self.samples
        size = (cols * side, rows * side)
        shrinks = size[0] <= image.shape[1] and size[1] <= image.shape[0]
        pixels = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
        cues = [(_SEED, lab, self.color_sigma, 1.0)]
        if self.texture_weight:
            texture = gradient_texture(lab, self.scales)
            cues.append((_SEED + 1, texture, self.texture_sigma, self.texture_weight))
        if self.position_weight:
            y, x = np.mgrid[: size[1], : size[0]].astype(np.float32) / max(size)
            place = np.stack([y, x], axis=-1)
            cues.append((_SEED + 2, place, self.position_sigma, self.position_weight))
        means = []
        for seed, values, sigma, weight in cues:
            features = fourier_features(values, self.dims, sigma, seed)
            features *= np.float32(weight)
            # one cue at a time, since the samples take side * side as much memory as the cells
            means.append(features.reshape(rows, side, cols, side, -1).mean(axis=(1, 3)))
        return np.concatenate(means, axis=-1)

    def describe(self) -> dict:
        return {
            "name": self.name,
            "source": "ours: training-free",
            "token_budget": self.token_budget,
            "samples": self.samples,
            "dims": self.dims,
            "color_sigma": self.color_sigma,
            "texture_sigma": self.texture_sigma,
            "texture_weight": self.texture_weight,
            "position_sigma": self.position_sigma,
            "position_weight": self.position_weight,
            "scales": list(self.scales),
        }


def fourier_features(values: np.ndarray, dims: int, sigma: float, seed: int) -> np.ndarray:
    """Random Fourier features of the Gaussian kernel exp(-|x - y|^2 / (2 sigma^2)).

    Args:
        values: (..., K) float32.
        dims: number of features; the error of the kernel is proportional to 1 / sqrt(dims).
        sigma: bandwidth, in units of ``values``.
        seed: random seed.

    Returns:
        (..., dims) float32, whose inner products approximate the kernel.
    """
    generator = np.random.default_rng(seed)
    frequencies = generator.standard_normal((values.shape[-1], dims)).astype(np.float32) / np.float32(sigma)
    phases = generator.uniform(0, 2 * np.pi, dims).astype(np.float32)
    features = values @ frequencies  # in place from here: these arrays take many megabytes per image
    features += phases
    np.cos(features, out=features)
    features *= np.float32(np.sqrt(2 / dims))
    return features


def gradient_texture(lab: np.ndarray, scales: Sequence[float]) -> np.ndarray:
    """Local gradient strength of each pixel, by scale and, for lightness, by direction.

    Args:
        lab: (H, W, 3) float32.
        scales: standard deviations in pixels.

    Returns:
        (H, W, 6 * len(scales)) float32 square roots of pooled gradient magnitudes: four directions of L, then a and b.
    """
    maps: list[np.ndarray] = []
    for scale in scales:
        for channel in range(3):
            smooth = cv2.GaussianBlur(lab[..., channel], (0, 0), scale)
            # Scale-normalised derivatives (Lindeberg 1998): gradients decrease with the scale, so multiply by it.
            dx, dy = (cv2.Sobel(smooth, cv2.CV_32F, *order) * np.float32(scale) for order in ((1, 0), (0, 1)))
            if channel == 0:
                angles = np.arange(4) * np.pi / 4
                magnitudes = [np.abs(dx * np.float32(np.cos(a)) + dy * np.float32(np.sin(a))) for a in angles]
            else:
                magnitudes = [np.hypot(dx, dy)]
            maps.extend(cv2.GaussianBlur(magnitude, (0, 0), 2 * scale) for magnitude in magnitudes)
    return np.sqrt(np.stack(maps, axis=-1))


class JointExtractor(FeatureExtractor):
    """Features of one extractor on its grid, concatenated with those of another, resampled to that grid.

    Each part is scaled to unit length and multiplied by the square root of its weight, so that the cosine of two cells
    is the weighted mean of the two parts' cosines. Both defaults are our own, chosen for the
    recall of the labels on the training split of BSDS500.

    Args:
        fine: defines the grid and the cell.
        coarse: runs on a grid with sides of 1 / ``shrink`` of that grid's.
        weight: of the coarse part's cosine in the mean, 0..1.
        shrink: ratio of the sides of the two grids, at least 1.

    Raises:
        ValueError: a weight or shrink out of range.
    """

    name = "joint"

    def __init__(self, fine: FeatureExtractor, coarse: FeatureExtractor, *, weight: float = 0.6, shrink: float = 3.0):
        if not 0 <= weight <= 1 or not shrink >= 1:
            raise ValueError(
                f"A joint feature needs a weight in [0, 1] and a shrink from 1 on, not {weight}, {shrink}."
            )
        self.fine, self.coarse, self.weight, self.shrink = fine, coarse, weight, shrink
        self.cell, self.token_budget = fine.cell, fine.token_budget
        self.device = coarse.device

    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        own = max(1, round(grid[0] / self.shrink)), max(1, round(grid[1] / self.shrink))
        fine, coarse = self.fine.extract_at(images, grid), self.coarse.extract_at(images, own)
        channels = fine.shape[-1]
        joined = np.empty((len(images), *grid, channels + coarse.shape[-1]), np.float32)
        joined[..., :channels] = fine
        del fine  # the parts take as much memory as the whole
        for k, feature in enumerate(coarse):
            joined[k, ..., channels:] = resampled(feature, grid)
        for part, weight in ((joined[..., :channels], 1 - self.weight), (joined[..., channels:], self.weight)):
            scale_to_unit_length(part)
            part *= np.float32(np.sqrt(weight))
        return joined

    def describe(self) -> dict:
        return {
            "name": self.name,
            "weight": self.weight,
            "shrink": self.shrink,
            "fine": self.fine.describe(),
            "coarse": self.coarse.describe(),
        }


def scale_to_unit_length(features: np.ndarray) -> None:
    """Scale every vector of (..., C) float32 to length 1, in place; zeros stay zeros."""
    # einsum avoids an array of squares, which for the many crops of a photo would cost as much as the network
    squares = np.einsum("...c,...c->...", features, features)
    features /= np.maximum(np.sqrt(squares), 1e-12)[..., None]


def resampled(feature: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resample (rows, cols, C) bilinearly to another grid (rows, cols); torch supports any number of channels."""
    if feature.shape[:2] == tuple(grid):
        return feature
    x = torch.from_numpy(feature).permute(2, 0, 1)[None]
    x = torch.nn.functional.interpolate(x, size=tuple(grid), mode="bilinear", align_corners=False)
    return x[0].permute(1, 2, 0).contiguous().numpy()


@FEATURE_EXTRACTORS.register()
def color_texture(cfg) -> ColorTextureExtractor:
    """Training-free extractor without weights."""
    return ColorTextureExtractor(
        token_budget=cfg.EXPLORATION.FEATURES.TOKEN_BUDGET or ColorTextureExtractor.default_token_budget
    )


@FEATURE_EXTRACTORS.register()
def joint(cfg) -> JointExtractor:
    """``color_texture`` with the ViT of ``EXPLORATION.FEATURES.WEIGHTS``, as for ``vit_file``."""
    settings = {key: value for key, value in vit_settings(cfg).items() if key != "token_budget"}
    return JointExtractor(color_texture(cfg), load_vit_file(cfg.EXPLORATION.FEATURES.WEIGHTS, **settings))

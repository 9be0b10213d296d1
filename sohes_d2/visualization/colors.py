"""Colours of a forest: a hue per whole and shades of it for its parts, distinguishable with colour blindness.

Colours are compared in OKLab (Ottosson, 2020), which is perceptually uniform, for normal vision, protanopia and
deuteranopia (simulation of Machado et al., IEEE TVCG 2009, severity 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import sparse

from ..structures.forest import NO_PARENT, Forest
from .primitives import scaled_shape

# Hue in degrees, lightness and chroma in OKLCH. The first colours are the strongest; lightness alternates because it is
# visible with any colour vision.
WHOLE_PALETTE = (
    (255, 0.62, 0.16),  # blue
    (60, 0.76, 0.16),  # orange
    (165, 0.70, 0.14),  # green
    (350, 0.66, 0.20),  # pink
    (100, 0.88, 0.17),  # yellow
    (300, 0.55, 0.20),  # violet
    (215, 0.82, 0.12),  # sky
    (30, 0.58, 0.19),  # vermilion
    (130, 0.82, 0.19),  # lime
    (325, 0.80, 0.13),  # light orchid
    (190, 0.56, 0.10),  # teal
    (275, 0.76, 0.11),  # lavender
)

# Changes of a part's colour relative to its parent: steps of lightness, and of hue in units of HUE_TURN.
LIGHTNESS_STEPS = (0.10, -0.10, 0.20, -0.18, 0.0)
HUE_STEPS = (0.0, 1.0, -1.0, 0.5, -0.5)
# Hue range in degrees for parts of a small whole, and of one that fills the picture: if nearly everything is part of
# one whole, a single hue would not distinguish the parts.
HUE_TURN = (22.0, 75.0)

# Above this OKLab distance two colours are easily distinguished, and an unused colour is preferred to a more distant
# one.
FAR_ENOUGH = 0.12
# Smallest distance of a shade from its parent's colour, because they are drawn side by side in a strip.
FROM_PARENT = 0.06

# Neighbours are computed on a grid of at most this number of cells per side, which is fast enough for 1,000 masks.
NEIGHBOUR_GRID = 96

# Linear-light RGB as seen with protanopia and deuteranopia.
_PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
_DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
_VISIONS = np.array([np.eye(3), _PROTANOPIA, _DEUTERANOPIA])

_RGB_TO_LMS = np.array(
    (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
)
_LMS_TO_LAB = np.array(
    (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )
)
_LAB_TO_LMS = np.linalg.inv(_LMS_TO_LAB)
_LMS_TO_RGB = np.linalg.inv(_RGB_TO_LMS)


def forest_colors(forest: Forest) -> np.ndarray:
    """Assign a colour to every mask of a forest.

    Each whole gets the palette colour that differs most from those of the wholes it touches; each other mask gets a
    shade of its parent's colour that differs from its neighbours of the same depth. Masks are processed from large to
    small, so the colours do not depend on their order in the forest.

    Args:
        forest: a forest of N masks.

    Returns:
        (N, 3) uint8 RGB.
    """
    n = len(forest)
    colors = np.zeros((n, 3))  # OKLCH: lightness, chroma, hue in degrees
    if not n:
        return np.zeros((0, 3), np.uint8)
    near = _neighbours(forest)
    depths = forest.depths()
    shares = forest.areas / max(1, forest.image_size[0] * forest.image_size[1])
    ordered = np.array(canonical_order(forest, np.arange(n)))
    seen = np.zeros((n, len(_VISIONS), 3))  # each colour in OKLab, for each vision
    for depth in range(int(depths.max()) + 1):
        done = np.zeros(n, dtype=bool)
        level = ordered[depths[ordered] == depth]
        palettes = _palettes(np.unique(forest.parents[level]), colors, shares, seen)
        for k in level:
            candidates, views, taken = palettes[int(forest.parents[k])]
            distance = np.minimum(_least_distance(views, seen[near[k] & done]), FAR_ENOUGH).round(3)
            # Of the least used colours, the one that differs most from its siblings; wholes follow the palette.
            siblings = seen[done & (forest.parents == forest.parents[k])] if depth else seen[:0]
            among = np.minimum(_least_distance(views, siblings), FAR_ENOUGH).round(3)
            best = int(np.lexsort((-among, taken, -distance))[0])
            taken[best] += 1
            colors[k], seen[k], done[k] = candidates[best], views[best], True
    return oklch_to_rgb(colors)


def _palettes(parents: np.ndarray, colors: np.ndarray, shares: np.ndarray, seen: np.ndarray) -> dict[int, tuple]:
    """For each parent (NO_PARENT for wholes) the candidate colours of its children: (C, 3) OKLCH, (C, visions, 3) OKLab
    for each vision, and (C,) use counts, initially 0."""
    if list(parents) == [NO_PARENT]:
        candidates = [np.array([(lightness, chroma, hue) for hue, lightness, chroma in WHOLE_PALETTE])]
    else:
        candidates = [_shades(colors[parent], float(shares[parent])) for parent in parents]
    views = np.split(_as_seen(oklch_to_rgb(np.concatenate(candidates))), np.cumsum([len(c) for c in candidates])[:-1])
    palettes = {}
    for parent, shades, looks in zip(parents, candidates, views):
        if parent != NO_PARENT:
            apart = _least_distance(looks, seen[[parent]]) >= FROM_PARENT
            shades, looks = shades[apart], looks[apart]
        palettes[int(parent)] = shades, looks, np.zeros(len(shades), np.int64)
    return palettes


def canonical_order(forest: Forest, indices: Sequence[int] | np.ndarray) -> list[int]:
    """Indices from large to small; equal areas by ascending score (drawn on top), then by box and run lengths."""

    def key(k: int) -> tuple:
        area, score, box = int(forest.areas[k]), float(forest.scores[k]), tuple(forest.boxes[k])
        return (-area, score, box, bytes(forest.masks[k]["counts"]))

    return sorted((int(k) for k in indices), key=key)


def oklch_to_rgb(colors: np.ndarray) -> np.ndarray:
    """Convert OKLCH colours (N, 3) of lightness 0-1, chroma, and hue in degrees to (N, 3) uint8 RGB.

    The chroma of colours outside sRGB is reduced; their hue is kept.
    """
    colors = np.atleast_2d(np.asarray(colors, np.float64))
    result = np.zeros(colors.shape)
    pending = np.ones(len(colors), dtype=bool)
    for factor in (1.0, 0.85, 0.7, 0.55, 0.4, 0.25, 0.0):
        lightness, chroma, hue = colors[pending, 0], colors[pending, 1] * factor, np.deg2rad(colors[pending, 2])
        lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
        linear = ((lab @ _LAB_TO_LMS.T) ** 3) @ _LMS_TO_RGB.T
        fits = ((linear >= -1e-3) & (linear <= 1 + 1e-3)).all(axis=1) | (factor == 0.0)
        index = np.flatnonzero(pending)[fits]
        result[index] = np.clip(linear[fits], 0, 1)
        pending[index] = False
    srgb = np.where(result <= 0.0031308, 12.92 * result, 1.055 * np.maximum(result, 1e-9) ** (1 / 2.4) - 0.055)
    return (srgb * 255).round().astype(np.uint8)


def rgb_to_oklab(rgb: np.ndarray, vision: np.ndarray | None = None) -> np.ndarray:
    """Convert uint8 RGB (..., 3) to OKLab, optionally after a (3, 3) matrix on linear light."""
    srgb = np.asarray(rgb, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    if vision is not None:
        linear = np.clip(linear @ np.asarray(vision).T, 0, 1)
    return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T


def _as_seen(rgb: np.ndarray) -> np.ndarray:
    """Convert (N, 3) uint8 RGB to (N, visions, 3) OKLab."""
    return np.stack([rgb_to_oklab(rgb, vision) for vision in _VISIONS], axis=1)


def _least_distance(views: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """(C,) distance of each candidate (C, visions, 3) to the nearest rival (R, visions, 3), minimum over visions."""
    if not len(rivals):
        return np.full(len(views), np.inf)
    return np.linalg.norm(views[:, None] - rivals[None], axis=-1).min(axis=(1, 2))


def _shades(parent: np.ndarray, share: float) -> np.ndarray:
    """(C, 3) OKLCH shades of the colour of a parent that covers ``share`` of the picture."""
    lightness, chroma, hue = parent.tolist()
    turn = HUE_TURN[0] + (HUE_TURN[1] - HUE_TURN[0]) * share
    # Both steps change with each candidate, so that the first parts differ in lightness and in hue.
    n = len(LIGHTNESS_STEPS)
    steps = [(LIGHTNESS_STEPS[(k + k // n) % n], HUE_STEPS[k % n]) for k in range(n * n)]
    shades = [
        (
            min(max(lightness + lighter, 0.42), 0.88),
            chroma * (1.0 if lighter < 0.15 else 0.8),
            (hue + turned * turn) % 360,
        )
        for lighter, turned in steps
    ]
    # remove duplicates: at the ends of the scale two steps give the same lightness
    return np.array(list({(round(s[0], 3), round(s[2], 3)): s for s in reversed(shades)}.values())[::-1])


def _neighbours(forest: Forest) -> np.ndarray:
    """(N, N) bool: the two masks touch or overlap on a coarse grid."""
    height, width = forest.image_size
    scale = NEIGHBOUR_GRID / max(height, width, NEIGHBOUR_GRID)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    cells = np.zeros((len(forest), *size), dtype=bool)
    for k, rle in enumerate(forest.masks):
        shape = scaled_shape(rle, size)
        cells[k][shape.window] = shape.mask
    grown = cells.copy()
    grown[:, 1:] |= cells[:, :-1]
    grown[:, :-1] |= cells[:, 1:]
    grown[:, :, 1:] |= cells[:, :, :-1]
    grown[:, :, :-1] |= cells[:, :, 1:]
    counts = sparse.csr_array(grown.reshape(len(forest), -1).astype(np.int32))
    return (counts @ sparse.csr_array(cells.reshape(len(forest), -1).astype(np.int32)).T).toarray() > 0

"""Synthetic scenes with a known forest: for tests, and for trying and measuring methods without a download.

Objects of several kinds (`kinds`) occlude each other on a textured background. Light falls from one side,
things cast shadows, textures and a camera's blur and noise lie over all. The masks are those of what is visible.
"""

from __future__ import annotations

import numpy as np

from ...structures.forest import NO_PARENT, Forest
from ...structures.masks import encode_masks
from .kinds import Piece, random_thing
from .paint import (
    Color,
    blur,
    choice,
    grain,
    near_color,
    random_color,
    random_paint,
    shifted,
    uniform,
    value_noise,
)
from .shapes import Frame, unit_vector

VERSION = 1  # of the scenes: rises when the same seed and index no longer give the same
DEFAULT_SIZE = (128, 128)
SMALLEST_SIDE = 32
MIN_AREA = 150  # pixels: less of a mask cannot be told from noise
MOST_THINGS = 4
# A part that is nearly all that is left of what it belongs to is not told from it: they would be one mask twice.
_MOST_OF_PARENT = 0.8
_NOTHING = -1


def generate_scene(
    seed: int, index: int, size: tuple[int, int] = DEFAULT_SIZE, min_area: int = MIN_AREA
) -> tuple[np.ndarray, Forest]:
    """One scene and its forest; the same on every machine, whatever scenes were made before.

    Args:
        seed: of the series of scenes, not negative.
        index: of the scene in the series, not negative.
        size: (H, W) in pixels, both at least 32.
        min_area: pixels; masks of which less is visible are left out, and their parts go to what they belong to.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its forest: every mask lies inside its parent's, whose area is at least a
        quarter larger. Only in images much smaller than the default can it be empty.

    Raises:
        ValueError: a negative seed or index, or too small an image.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index of a scene must not be negative, got {seed} and {index}")
    if min(size) < SMALLEST_SIDE:
        raise ValueError(f"a scene needs at least {SMALLEST_SIDE} x {SMALLEST_SIDE} pixels, got {tuple(size)}")
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    ground = random_color(rng)
    scene = _Scene(size, ground, rng)
    for thing, frame in _arrangement(size, ground, rng):
        scene.add(thing, frame)
    return scene.photograph(), scene.forest(min_area)


def _arrangement(size: tuple[int, int], ground: Color, rng: np.random.Generator) -> list[tuple[Piece, Frame]]:
    """2 to 4 things and where they stand, from back to front: each takes the freest of a few places."""
    height, width = size
    placed: list[tuple[Piece, Frame]] = []
    for _ in range(2 + int(float(rng.random()) ** 2 * (MOST_THINGS - 1))):
        # Squared: there are more small things than large ones.
        unit = min(size) * (0.24 + 0.24 * float(rng.random()) ** 2)
        places = [(uniform(rng, 0.08, 0.92) * height, uniform(rng, 0.08, 0.92) * width) for _ in range(3)]
        y, x = max(places, key=lambda place: min([_gap(place, unit, frame) for _, frame in placed], default=0.0))
        turn = uniform(rng, -0.07, 0.07) if rng.random() < 0.7 else float(rng.random())
        # Some are of about the ground's colour.
        color = near_color(rng, ground, uniform(rng, 0.1, 0.3)) if rng.random() < 0.35 else random_color(rng)
        placed.append((random_thing(rng, color), Frame(y, x, unit, turn)))
    # Mostly small before large, so that few are hidden.
    return sorted(placed, key=lambda item: -item[1].unit * uniform(rng, 0.6, 1.4))


def _gap(place: tuple[float, float], unit: float, frame: Frame) -> float:
    """Squared distance of two things in units of their size: which is largest needs no root."""
    dy, dx, reach = place[0] - frame.y, place[1] - frame.x, unit + frame.unit
    return (dy * dy + dx * dx) / (reach * reach)


class _Scene:
    """The picture as it is painted from back to front, and which piece is seen at each pixel."""

    def __init__(self, size: tuple[int, int], ground: Color, rng: np.random.Generator):
        self.size = size
        self.rng = rng
        self.parents: list[int] = []
        self.owner = np.full(size, _NOTHING)
        self.light = unit_vector(float(rng.random()))  # direction to it, (y, x)
        self.image = self._ground(ground)

    def _ground(self, color: Color) -> np.ndarray:
        """A gradient between two colours, each with its texture."""
        rng = self.rng
        cosine, sine = unit_vector(float(rng.random()))
        y = (np.arange(self.size[0]) / self.size[0] - 0.5)[:, None]
        x = (np.arange(self.size[1]) / self.size[1] - 0.5)[None, :]
        far = np.clip(0.5 + y * cosine + x * sine, 0, 1)[..., None]
        ground = random_paint(rng, color).render(self.size, rng) * (1 - far)
        return ground + random_paint(rng, near_color(rng, color, uniform(rng, 0.05, 0.3))).render(self.size, rng) * far

    def add(self, thing: Piece, frame: Frame) -> None:
        """Put a thing before all that stands there, with its shadow."""
        layer = np.zeros_like(self.image)
        owner = np.full(self.size, _NOTHING)
        self._draw(thing, frame, NO_PARENT, None, layer, owner)
        silhouette = owner != _NOTHING
        layer *= self._shading(frame)
        self.image *= self._shadow(silhouette, frame)
        self.image[silhouette] = layer[silhouette]
        self.owner[silhouette] = owner[silhouette]

    def _draw(
        self,
        piece: Piece,
        frame: Frame,
        parent: int,
        surface: np.ndarray | None,
        layer: np.ndarray,
        owner: np.ndarray,
    ) -> None:
        """Draw a piece and what belongs to it; ``surface`` is the (H, W) mask that a clipped piece stays inside of."""
        index = len(self.parents)
        self.parents.append(parent)
        mask = None
        if piece.shape is not None:
            assert piece.paint is not None
            mask = piece.shape.inside(*frame.coordinates(self.size))
            if piece.clipped and surface is not None:
                mask &= surface
            layer[mask] = piece.paint.render(self.size, self.rng)[mask]
            owner[mask] = index
        for part in piece.parts:
            self._draw(part, frame.inner(part.y, part.x, part.unit, part.turn), index, mask, layer, owner)

    def _shading(self, frame: Frame) -> np.ndarray:
        """(H, W, 1) light on a thing: bright towards the light, dark away from it, more or less round."""
        y, x = Frame(frame.y, frame.x, frame.unit).coordinates(self.size)
        slope = y * self.light[0] + x * self.light[1]
        shading = 1 + uniform(self.rng, 0.2, 0.8) * slope - uniform(self.rng, 0.0, 0.35) * (y * y + x * x - 0.5)
        return np.clip(shading, 0.4, 1.5)[..., None]

    def _shadow(self, silhouette: np.ndarray, frame: Frame) -> np.ndarray:
        """(H, W, 1) factor on what lies behind a thing."""
        reach = uniform(self.rng, 0.1, 0.5) * frame.unit
        dy, dx = (-int(reach * component) for component in self.light)
        depth = uniform(self.rng, 0.1, 0.65)
        return 1 - depth * blur(shifted(silhouette, dy, dx).astype(np.float64), 4)[..., None]

    def photograph(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the picture in uneven light, blurred, and noisy as from a camera at night."""
        rng = self.rng
        period = max(self.size) * uniform(rng, 0.3, 0.7)
        light = 1 + uniform(rng, 0.2, 1.0) * (value_noise(self.size, period, rng) - 0.5)
        image = blur(self.image * light[..., None], choice(rng, 0, 1, 1, 2))
        noise = grain(image.shape, rng) + grain((*self.size, 1), rng)
        image = 255 * image + uniform(rng, 16.0, 56.0) * noise
        return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)

    def forest(self, min_area: int) -> Forest:
        """What is visible of each piece and its parts, where that is enough to be told."""
        n = len(self.parents)
        masks = np.stack([self.owner == k for k in range(n)])
        for k in reversed(range(n)):  # parts come after what they belong to
            if self.parents[k] != NO_PARENT:
                masks[self.parents[k]] |= masks[k]
        areas = masks.sum(axis=(1, 2))
        kept: list[int] = []
        nearest: dict[int, int] = {}  # each piece, or else what it belongs to, that is kept
        for k in range(n):
            above = nearest.get(self.parents[k], NO_PARENT)
            nearest[k] = above
            if areas[k] >= min_area and (above == NO_PARENT or areas[k] <= _MOST_OF_PARENT * areas[above]):
                kept.append(k)
                nearest[k] = k
        every = Forest(encode_masks(masks), self.parents, self.size)
        return every.subset(kept)

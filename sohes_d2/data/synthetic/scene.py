"""Synthetic scenes with a known forest, for tests and for experiments without a download.

Objects of several kinds (`kinds`) occlude each other on a textured background, with directional light, shadows,
textures, blur and noise. Masks cover the visible pixels.
"""

from __future__ import annotations

import numpy as np

from ...structures.forest import NO_PARENT, Forest
from ...structures.masks import encode_masks
from .drawing import (
    Color,
    Frame,
    blur,
    choice,
    grain,
    near_color,
    random_color,
    random_paint,
    shifted,
    uniform,
    unit_vector,
    value_noise,
)
from .kinds import Piece, random_thing

VERSION = 1  # incremented when the same seed and index give another scene than before
DEFAULT_SIZE = (128, 128)
SMALLEST_SIDE = 32
MIN_AREA = 150  # pixels: smaller visible masks cannot be distinguished from noise
MOST_THINGS = 4
# Largest area of a part as a share of its parent's; above it, both would be nearly the same mask.
_MAX_PART_AREA = 0.8
_NO_PIECE = -1


def generate_scene(
    seed: int, index: int, size: tuple[int, int] = DEFAULT_SIZE, min_area: int = MIN_AREA
) -> tuple[np.ndarray, Forest]:
    """Generate a scene and its forest; deterministic on every machine and independent of other scenes.

    Args:
        seed: seed of the series of scenes, not negative.
        index: index of the scene in the series, not negative.
        size: (H, W) in pixels, both at least 32.
        min_area: pixels; masks with a smaller visible area are dropped, and their parts are linked to their parent.

    Returns:
        The image, (H, W, 3) uint8 RGB, and its forest: every mask is inside its parent's, whose area is at least a
        quarter larger. The forest can be empty only in images much smaller than the default.

    Raises:
        ValueError: the seed or index is negative, or the image is too small.
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
    return scene.finished_image(), scene.forest(min_area)


def _arrangement(size: tuple[int, int], ground: Color, rng: np.random.Generator) -> list[tuple[Piece, Frame]]:
    """2 to 4 objects and their frames, from back to front, each at the least crowded of three random places."""
    height, width = size
    placed: list[tuple[Piece, Frame]] = []
    for _ in range(2 + int(float(rng.random()) ** 2 * (MOST_THINGS - 1))):
        # The square gives more small objects than large ones.
        unit = min(size) * (0.24 + 0.24 * float(rng.random()) ** 2)
        places = [(uniform(rng, 0.08, 0.92) * height, uniform(rng, 0.08, 0.92) * width) for _ in range(3)]
        y, x = max(places, key=lambda place: min([_gap(place, unit, frame) for _, frame in placed], default=0.0))
        turn = uniform(rng, -0.07, 0.07) if rng.random() < 0.7 else float(rng.random())
        # Some objects have nearly the colour of the ground.
        color = near_color(rng, ground, uniform(rng, 0.1, 0.3)) if rng.random() < 0.35 else random_color(rng)
        placed.append((random_thing(rng, color), Frame(y, x, unit, turn)))
    # Small objects are mostly in front of large ones, so that few are hidden.
    return sorted(placed, key=lambda item: -item[1].unit * uniform(rng, 0.6, 1.4))


def _gap(place: tuple[float, float], unit: float, frame: Frame) -> float:
    """Squared distance of a place for an object of size ``unit`` from another object, in units of their sizes."""
    dy, dx, reach = place[0] - frame.y, place[1] - frame.x, unit + frame.unit
    return (dy * dy + dx * dx) / (reach * reach)


class _Scene:
    """The image, painted from back to front, and the index of the visible piece at each pixel (``owner``)."""

    def __init__(self, size: tuple[int, int], ground: Color, rng: np.random.Generator):
        self.size = size
        self.rng = rng
        self.parents: list[int] = []
        self.owner = np.full(size, _NO_PIECE)
        self.light = unit_vector(float(rng.random()))  # direction towards the light, (y, x)
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
        """Draw an object and its shadow in front of the others."""
        layer = np.zeros_like(self.image)
        owner = np.full(self.size, _NO_PIECE)
        self._draw(thing, frame, NO_PARENT, None, layer, owner)
        silhouette = owner != _NO_PIECE
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
        """Draw a piece and its parts; ``surface`` is the (H, W) mask that clips a clipped piece."""
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
        """(H, W, 1) shading of an object: brighter on the side of the light, darker on the other."""
        y, x = Frame(frame.y, frame.x, frame.unit).coordinates(self.size)
        slope = y * self.light[0] + x * self.light[1]
        shading = 1 + uniform(self.rng, 0.2, 0.8) * slope - uniform(self.rng, 0.0, 0.35) * (y * y + x * x - 0.5)
        return np.clip(shading, 0.4, 1.5)[..., None]

    def _shadow(self, silhouette: np.ndarray, frame: Frame) -> np.ndarray:
        """(H, W, 1) brightness factor of the pixels behind an object."""
        reach = uniform(self.rng, 0.1, 0.5) * frame.unit
        dy, dx = (-int(reach * component) for component in self.light)
        depth = uniform(self.rng, 0.1, 0.65)
        return 1 - depth * blur(shifted(silhouette, dy, dx).astype(np.float64), 4)[..., None]

    def finished_image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB: the painted image with uneven light, blur and noise."""
        rng = self.rng
        period = max(self.size) * uniform(rng, 0.3, 0.7)
        light = 1 + uniform(rng, 0.2, 1.0) * (value_noise(self.size, period, rng) - 0.5)
        image = blur(self.image * light[..., None], choice(rng, 0, 1, 1, 2))
        noise = grain(image.shape, rng) + grain((*self.size, 1), rng)
        image = 255 * image + uniform(rng, 16.0, 56.0) * noise
        return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)

    def forest(self, min_area: int) -> Forest:
        """The forest of the visible pixels of each piece and its parts, without tiny pieces and near-duplicates."""
        n = len(self.parents)
        masks = np.stack([self.owner == k for k in range(n)])
        for k in reversed(range(n)):  # parts come after their parents
            if self.parents[k] != NO_PARENT:
                masks[self.parents[k]] |= masks[k]
        areas = masks.sum(axis=(1, 2))
        kept: list[int] = []
        nearest: dict[int, int] = {}  # piece -> nearest kept piece: itself or an ancestor
        for k in range(n):
            above = nearest.get(self.parents[k], NO_PARENT)
            nearest[k] = above
            if areas[k] >= min_area and (above == NO_PARENT or areas[k] <= _MAX_PART_AREA * areas[above]):
                kept.append(k)
                nearest[k] = k
        return Forest(encode_masks(masks), self.parents, self.size).subset(kept)

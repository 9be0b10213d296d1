"""Shapes and surfaces of synthetic scenes: outlines, colours, textures, blur and noise; colours are RGB in [0, 1].

The arithmetic is bit-identical on every machine: pixels are computed only with +, -, *, / and comparisons, which
IEEE 754 rounds identically. Cosines, which differ in the last bit between math libraries, are only computed for single
numbers and rounded (`unit_vector`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Union

import numpy as np


def unit_vector(turn: float) -> tuple[float, float]:
    """(cosine, sine) of an angle in full turns."""
    return round(math.cos(2 * math.pi * turn), 9), round(math.sin(2 * math.pi * turn), 9)


@dataclass(frozen=True)
class Frame:
    """A coordinate system in the image: shifted, scaled and rotated.

    Attributes:
        y, x: origin, in pixels.
        unit: length of a unit, in pixels.
        turn: rotation of the axes, in full turns.
    """

    y: float
    x: float
    unit: float
    turn: float = 0.0

    def inner(self, y: float, x: float, unit: float = 1.0, turn: float = 0.0) -> Frame:
        """A frame with origin, unit and turn relative to this one."""
        cosine, sine = unit_vector(self.turn)
        return Frame(
            self.y + self.unit * (y * cosine + x * sine),
            self.x + self.unit * (x * cosine - y * sine),
            self.unit * unit,
            self.turn + turn,
        )

    def coordinates(self, image_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) y and x of the pixel centres in this frame."""
        cosine, sine = unit_vector(self.turn)
        y = ((np.arange(image_size[0]) + 0.5 - self.y) / self.unit)[:, None]
        x = ((np.arange(image_size[1]) + 0.5 - self.x) / self.unit)[None, :]
        return y * cosine - x * sine, y * sine + x * cosine


@dataclass(frozen=True)
class Ellipse:
    """An ellipse, by its half axes in units of the frame."""

    height: float
    width: float

    def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(H, W) bool, from coordinates in the frame."""
        y, x = y / self.height, x / self.width
        return y * y + x * x <= 1


@dataclass(frozen=True)
class Box:
    """A box, by its half sides and the radius of its corners, in units of the frame."""

    height: float
    width: float
    radius: float = 0.0

    def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(H, W) bool, from coordinates in the frame."""
        radius = min(self.radius, self.height, self.width)
        y, x = np.abs(y), np.abs(x)
        beyond_y = np.maximum(y - (self.height - radius), 0)
        beyond_x = np.maximum(x - (self.width - radius), 0)
        # Also compare with the sides, since rounding could include points just beyond them.
        return (beyond_y * beyond_y + beyond_x * beyond_x <= radius * radius) & (y <= self.height) & (x <= self.width)


@dataclass(frozen=True)
class Polygon:
    """A polygon, by its corners (y, x) in order, in units of the frame; it need not be convex."""

    corners: tuple[tuple[float, float], ...]

    def inside(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(H, W) bool, from coordinates in the frame: inside if an odd number of sides is to the right."""
        odd = np.zeros(np.broadcast(y, x).shape, bool)
        for (y0, x0), (y1, x1) in zip(self.corners, self.corners[1:] + self.corners[:1]):
            if y0 != y1:
                odd ^= ((y0 > y) != (y1 > y)) & (x < x0 + (y - y0) * ((x1 - x0) / (y1 - y0)))
        return odd


Shape = Union[Ellipse, Box, Polygon]


def star(radii: list[float], aspect: float = 1.0, start: float = 0.0) -> Polygon:
    """A polygon with a corner at each radius, at equal angles around the origin.

    Args:
        radii: three or more, in units of the frame.
        aspect: scales y.
        start: angle of the first corner, in full turns.
    """
    corners = []
    for k, radius in enumerate(radii):
        cosine, sine = unit_vector(start + k / len(radii))
        corners.append((aspect * radius * sine, radius * cosine))
    return Polygon(tuple(corners))


def smoothed(polygon: Polygon, rounds: int = 3) -> Polygon:
    """Smooth a polygon by cutting off its corners ``rounds`` times (Chaikin, 1974)."""
    corners = polygon.corners
    for _ in range(rounds):
        cut = []
        for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1]):
            cut.append((0.75 * y0 + 0.25 * y1, 0.75 * x0 + 0.25 * x1))
            cut.append((0.25 * y0 + 0.75 * y1, 0.25 * x0 + 0.75 * x1))
        corners = tuple(cut)
    return Polygon(corners)


Color = tuple[float, float, float]


@dataclass(frozen=True)
class Paint:
    """A surface.

    Attributes:
        color: mean RGB in [0, 1].
        texture: "plain", "noise", "stripes" or "spots".
        strength: amplitude of the texture, as a share of the colour.
        period: period of the texture, in pixels.
        turn: direction across the stripes, from the y axis, in full turns.
        tint: offset of R, G, B at the peaks of the texture.
    """

    color: Color
    texture: str = "plain"
    strength: float = 0.0
    period: float = 8.0
    turn: float = 0.0
    tint: Color = (0.0, 0.0, 0.0)

    def render(self, image_size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """(H, W, 3) float64, the surface under uniform light."""
        color = np.asarray(self.color)
        if self.texture == "plain":
            return np.broadcast_to(color, (*image_size, 3)).copy()
        if self.texture == "stripes":
            pattern = stripes(image_size, self.period, self.turn, rng)
        else:
            pattern = 2 * value_noise(image_size, self.period, rng) - 1
            if self.texture == "spots":
                pattern = np.clip(6 * (pattern - 0.15), -1, 1)
        return color * (1 + self.strength * pattern[..., None]) + pattern[..., None] * np.asarray(self.tint)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A random number in [low, high)."""
    return low + (high - low) * float(rng.random())


def choice(rng: np.random.Generator, *options):
    """A random option."""
    return options[int(rng.random() * len(options))]


def random_color(rng: np.random.Generator) -> Color:
    """A random colour of any hue, with random saturation and brightness."""
    hue, saturation, value = 6 * float(rng.random()), uniform(rng, 0.05, 0.75), uniform(rng, 0.2, 0.9)
    # Each channel is a clipped triangle wave over the hue circle; the three are shifted by a third of the circle.
    distances = (abs((hue + shift) % 6 - 3) for shift in (0, 4, 2))
    red, green, blue = (value * (1 - saturation * (1 - min(max(d - 1, 0.0), 1.0))) for d in distances)
    return red, green, blue


def near_color(rng: np.random.Generator, color: Color, distance: float) -> Color:
    """A random colour at about ``distance`` from another, per channel; brightness changes most."""
    brightness = choice(rng, -1, 1) * distance * uniform(rng, 0.4, 1.0)
    if not 0.12 < sum(color) / 3 + brightness < 0.92:
        brightness = -brightness
    return tuple(min(max(c + brightness + distance * uniform(rng, -0.6, 0.6), 0.04), 0.96) for c in color)


def random_paint(rng: np.random.Generator, color: Color, roughness: float = 1.0) -> Paint:
    """A random texture for a colour; ``roughness`` scales its strength."""
    texture = choice(rng, "plain", "noise", "noise", "noise", "stripes", "spots")
    period = uniform(rng, 3.0, 10.0) if texture == "stripes" else uniform(rng, 2.0, 18.0)
    strength = roughness * uniform(rng, 0.4, 1.3)
    red, green, blue = (roughness * uniform(rng, -0.16, 0.16) for _ in range(3))
    return Paint(color, texture, strength, period, float(rng.random()), (red, green, blue))


def value_noise(image_size: tuple[int, int], period: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float64 in [0, 1]: random values on a lattice of ``period`` pixels, smoothly interpolated."""
    height, width = image_size
    lattice = rng.random((int(height / period) + 3, int(width / period) + 3))
    offset_y, offset_x = rng.random(), rng.random()
    y, x = np.arange(height) / period + offset_y, np.arange(width) / period + offset_x
    row, col = y.astype(np.int64), x.astype(np.int64)
    y, x = (y - row)[:, None], (x - col)[None, :]
    y, x = y * y * (3 - 2 * y), x * x * (3 - 2 * x)
    above = lattice[row][:, col] * (1 - x) + lattice[row][:, col + 1] * x
    below = lattice[row + 1][:, col] * (1 - x) + lattice[row + 1][:, col + 1] * x
    return above * (1 - y) + below * y


def stripes(image_size: tuple[int, int], period: float, turn: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float64 in [-1, 1]: a slightly distorted triangle wave in direction ``turn``, see `Paint`."""
    cosine, sine = unit_vector(turn)
    y, x = np.arange(image_size[0])[:, None], np.arange(image_size[1])[None, :]
    phase = (y * cosine + x * sine) / period + 2 * value_noise(image_size, 8 * period, rng)
    return 4 * np.abs(phase - np.floor(phase) - 0.5) - 1


def blur(image: np.ndarray, rounds: int = 1) -> np.ndarray:
    """Apply ``rounds`` of the 3 x 3 binomial filter to (H, W, ...), with replicated borders."""
    for _ in range(rounds):
        for axis in (0, 1):
            first, last = image.take([0], axis), image.take([-1], axis)
            padded = np.concatenate([first, image, last], axis)
            n = image.shape[axis]
            parts = [padded.take(np.arange(k, k + n), axis) for k in range(3)]
            image = 0.25 * parts[0] + 0.5 * parts[1] + 0.25 * parts[2]
    return image


def shifted(mask: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Shift a (H, W) bool mask down by ``dy`` and right by ``dx``, cropped to the image."""
    height, width = mask.shape
    moved = np.zeros_like(mask)
    moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
        max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
    ]
    return moved


def grain(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Approximately Gaussian noise of mean 0 and standard deviation 1: the sum of four uniform draws."""
    return (rng.random(shape) + rng.random(shape) + rng.random(shape) + rng.random(shape) - 2) * 1.7320508

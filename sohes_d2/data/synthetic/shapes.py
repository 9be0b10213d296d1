"""Shapes of synthetic scenes, computed with arithmetic that is bit-identical on every machine.

Pixels are computed only with +, -, *, / and comparisons, which IEEE 754 rounds identically. Cosines, which differ in
the last bit between math libraries, are only computed for single numbers and rounded (`unit_vector`).
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
        """(H, W) bool, from coordinates in the frame: an odd number of sides is to the right."""
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
    """Smooth a polygon by cutting its corners ``rounds`` times (Chaikin, 1974)."""
    corners = polygon.corners
    for _ in range(rounds):
        cut = []
        for (y0, x0), (y1, x1) in zip(corners, corners[1:] + corners[:1]):
            cut.append((0.75 * y0 + 0.25 * y1, 0.75 * x0 + 0.25 * x1))
            cut.append((0.25 * y0 + 0.75 * y1, 0.25 * x0 + 0.75 * x1))
        corners = tuple(cut)
    return Polygon(corners)

"""Kinds of objects in synthetic scenes, each with its own parts and subparts.

Unlike random shapes, objects of one kind share their structure, while size, colour, texture and proportions vary, as in
photos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .drawing import (
    Box,
    Color,
    Ellipse,
    Paint,
    Polygon,
    Shape,
    choice,
    near_color,
    random_color,
    random_paint,
    smoothed,
    star,
    uniform,
)


@dataclass
class Piece:
    """An object, or a part with its position in its parent piece. Later parts are drawn over earlier ones.

    Attributes:
        shape: in the piece's units; None if it consists only of its parts.
        paint: surface of the shape.
        y, x, unit, turn: the piece's frame, in units of the parent piece; ignored for a whole object.
        clipped: whether it is clipped to the shape of its parent piece.
        parts: its parts.
    """

    shape: Shape | None
    paint: Paint | None
    y: float = 0.0
    x: float = 0.0
    unit: float = 1.0
    turn: float = 0.0
    clipped: bool = True
    parts: list[Piece] = field(default_factory=list)


def random_thing(rng: np.random.Generator, color: Color) -> Piece:
    """An object of a random kind and about this colour; one unit is about half its size."""
    return choice(rng, *KINDS)(rng, color)


def creature(rng: np.random.Generator, color: Color) -> Piece:
    """Legs, a body with patches, and a head with an ear and an eye."""
    fur = random_paint(rng, color)
    body_height, side = uniform(rng, 0.38, 0.6), choice(rng, -1, 1)
    legs = [
        Piece(
            Box(0.42, uniform(rng, 0.08, 0.14), 0.08),
            random_paint(rng, near_color(rng, color, 0.12)),
            y=0.55,
            x=x + uniform(rng, -0.05, 0.05),
            clipped=False,
        )
        for x in ((-0.5, 0.4) if rng.random() < 0.5 else (-0.55, -0.2, 0.2, 0.5))
    ]
    patches = [
        Piece(
            _blob(rng),
            random_paint(rng, near_color(rng, color, uniform(rng, 0.12, 0.4))),
            y=uniform(rng, -0.2, 0.2),
            x=uniform(rng, -0.5, 0.5),
            unit=uniform(rng, 0.18, 0.32),
        )
        for _ in range(int(rng.random() * 3))
    ]
    body = Piece(Ellipse(body_height, 0.8), fur, clipped=False, parts=patches)
    eye = Piece(
        Ellipse(1.0, 1.0),
        Paint(choice(rng, (0.9, 0.9, 0.85), (0.95, 0.8, 0.2))),
        y=-0.2,
        x=0.25 * side,
        unit=uniform(rng, 0.26, 0.36),
        parts=[Piece(Ellipse(1.0, 1.0), Paint((0.08, 0.08, 0.1)), x=0.2 * side, unit=0.5)],
    )
    ear = Piece(
        star([1.0, 0.8, 0.8]),
        random_paint(rng, near_color(rng, color, 0.25)),
        y=-0.9,
        x=-0.45 * side,
        unit=0.5,
        turn=uniform(rng, -0.1, 0.1),
        clipped=False,
    )
    head = Piece(
        Ellipse(uniform(rng, 0.8, 1.0), 1.0),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.06, 0.25))),
        y=uniform(rng, -0.55, -0.3),
        x=0.75 * side,
        unit=uniform(rng, 0.36, 0.5),
        clipped=False,
        parts=[ear, eye],
    )
    return Piece(None, None, parts=[*legs, body, head])


def vehicle(rng: np.random.Generator, color: Color) -> Piece:
    """A cabin with windows, a body with a stripe or a door, and wheels with hubs."""
    lacquer = random_paint(rng, color, 0.5)
    glass = near_color(rng, (0.45, 0.6, 0.7), 0.2)
    windows = [
        Piece(Box(0.2, 0.26, 0.05), random_paint(rng, near_color(rng, glass, 0.06), 0.4), y=0.0, x=x)
        for x in ((0.0,) if rng.random() < 0.4 else (-0.3, 0.3))
    ]
    cabin = Piece(
        Box(0.34, uniform(rng, 0.45, 0.65), uniform(rng, 0.1, 0.3)),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.03, 0.2)), 0.5),
        y=-0.42,
        x=uniform(rng, -0.25, 0.25),
        clipped=False,
        parts=windows,
    )
    door = Piece(
        Box(0.24, uniform(rng, 0.16, 0.28), 0.04),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.1, 0.35)), 0.5),
        x=uniform(rng, -0.3, 0.3),
        parts=[Piece(Box(0.05, 0.1), Paint(near_color(rng, color, 0.45)), y=-0.08)],
    )
    body = Piece(Box(0.34, 1.0, uniform(rng, 0.08, 0.3)), lacquer, y=0.12, clipped=False, parts=[door])
    wheel_size, tyre = uniform(rng, 0.22, 0.32), near_color(rng, (0.15, 0.15, 0.17), 0.08)
    wheels = [
        Piece(
            Ellipse(1.0, 1.0),
            random_paint(rng, tyre, 0.6),
            y=0.5,
            x=x,
            unit=wheel_size,
            clipped=False,
            parts=[Piece(Ellipse(1.0, 1.0), Paint(near_color(rng, (0.7, 0.7, 0.7), 0.2)), unit=0.5)],
        )
        for x in (-0.58, 0.58)
    ]
    return Piece(None, None, parts=[cabin, body, *wheels])


def building(rng: np.random.Generator, color: Color) -> Piece:
    """A wall with windows of several panes and a door, and a roof."""
    glass = near_color(rng, (0.4, 0.5, 0.6), 0.25)
    width = uniform(rng, 0.55, 0.9)
    windows = [
        Piece(
            Box(0.2, 0.2),
            Paint(near_color(rng, color, 0.4)),
            y=-0.25,
            x=x,
            unit=uniform(rng, 0.85, 1.15),
            parts=[Piece(Box(0.13, 0.13), random_paint(rng, near_color(rng, glass, 0.05), 0.4))],
        )
        for x in (-0.5 * width, 0.5 * width)
    ]
    door = Piece(
        Box(0.3, 0.17, choice(rng, 0.0, 0.1)),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.15, 0.45))),
        y=0.4,
        x=uniform(rng, -0.4, 0.4) * width,
    )
    wall = Piece(Box(0.65, width), random_paint(rng, color), y=0.25, clipped=False, parts=[*windows, door])
    roof = Piece(
        Polygon(((-0.5, -0.3 * width), (-0.5, 0.3 * width), (0.15, width + 0.15), (0.15, -width - 0.15))),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.1, 0.4))),
        y=-0.5,
        clipped=False,
    )
    return Piece(None, None, parts=[wall, roof])


def flower(rng: np.random.Generator, color: Color) -> Piece:
    """A stem with a leaf, and a bloom with a ring and a core."""
    green = near_color(rng, (0.25, 0.5, 0.2), 0.15)
    lobes = 5 + int(rng.random() * 4)
    outer, inner = uniform(rng, 0.95, 1.1), uniform(rng, 0.6, 0.8)
    bloom = Piece(
        smoothed(star([outer, inner] * lobes)),
        random_paint(rng, color),
        y=-0.4,
        unit=uniform(rng, 0.55, 0.7),
        clipped=False,
        parts=[
            Piece(
                Ellipse(0.5, 0.5),
                random_paint(rng, near_color(rng, color, uniform(rng, 0.15, 0.4))),
                parts=[Piece(Ellipse(0.25, 0.25), random_paint(rng, near_color(rng, color, 0.35)))],
            )
        ],
    )
    stem = Piece(Box(0.6, 0.07), random_paint(rng, green), y=0.5, clipped=False)
    leaf = Piece(
        Ellipse(0.14, 0.34),
        random_paint(rng, near_color(rng, green, 0.12)),
        y=uniform(rng, 0.4, 0.8),
        x=choice(rng, -0.3, 0.3),
        turn=uniform(rng, -0.08, 0.08),
        clipped=False,
    )
    return Piece(None, None, parts=[stem, leaf, bloom])


def bottle(rng: np.random.Generator, color: Color) -> Piece:
    """A neck with a cap, and a body with a label that has an emblem."""
    width = uniform(rng, 0.35, 0.55)
    emblem = Piece(_any_shape(rng), random_paint(rng, random_color(rng), 0.5), unit=uniform(rng, 0.18, 0.26))
    label = Piece(
        Box(uniform(rng, 0.22, 0.38), 1.0),
        random_paint(rng, near_color(rng, color, uniform(rng, 0.15, 0.5)), 0.5),
        y=uniform(rng, -0.15, 0.2),
        parts=[emblem],
    )
    body = Piece(Box(0.62, width, 0.2), random_paint(rng, color, 0.6), y=0.35, clipped=False, parts=[label])
    cap = Piece(Box(0.1, 1.0), random_paint(rng, near_color(rng, color, 0.35)), y=-0.3)
    neck = Piece(
        Box(0.4, width * uniform(rng, 0.35, 0.6), 0.05),
        random_paint(rng, near_color(rng, color, 0.08), 0.6),
        y=-0.55,
        clipped=False,
        parts=[cap],
    )
    return Piece(None, None, parts=[neck, body])


def decorated(rng: np.random.Generator, color: Color) -> Piece:
    """Any shape with up to three patches, some of which have a patch themselves."""
    patches = []
    for k in range(int(rng.random() * 4)):
        patch = near_color(rng, color, uniform(rng, 0.08, 0.45))
        piece = Piece(
            _any_shape(rng),
            random_paint(rng, patch),
            y=uniform(rng, -0.5, 0.5),
            x=(k - 1) * 0.45 + uniform(rng, -0.2, 0.2),
            unit=uniform(rng, 0.22, 0.42),
            turn=float(rng.random()),
        )
        if rng.random() < 0.5:
            core = random_paint(rng, near_color(rng, patch, uniform(rng, 0.12, 0.4)))
            piece.parts.append(Piece(_any_shape(rng), core, unit=uniform(rng, 0.45, 0.6), turn=float(rng.random())))
        patches.append(piece)
    return Piece(_any_shape(rng), random_paint(rng, color), parts=patches)


def plain(rng: np.random.Generator, color: Color) -> Piece:
    """Any shape without parts."""
    return Piece(_any_shape(rng), random_paint(rng, color))


KINDS: tuple[Callable[[np.random.Generator, Color], Piece], ...] = (
    creature,
    vehicle,
    building,
    flower,
    bottle,
    decorated,
    plain,
)


def _blob(rng: np.random.Generator) -> Polygon:
    radii = [uniform(rng, 0.65, 1.2) for _ in range(6 + int(rng.random() * 5))]
    return smoothed(star(radii, uniform(rng, 0.6, 1.0), float(rng.random())))


def _any_shape(rng: np.random.Generator) -> Shape:
    form = choice(rng, "ellipse", "box", "polygon", "blob")
    if form == "ellipse":
        return Ellipse(uniform(rng, 0.5, 1.0), 1.0)
    if form == "box":
        return Box(uniform(rng, 0.4, 0.85), 0.85, uniform(rng, 0.0, 0.4))
    if form == "polygon":
        return star([uniform(rng, 0.8, 1.15) for _ in range(3 + int(rng.random() * 5))], 0.9, float(rng.random()))
    return _blob(rng)

"""Mask overlays on a photo."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from ..structures.forest import NO_PARENT, Forest
from .colors import canonical_order, forest_colors
from .primitives import Shape, as_rgb, resize, scaled_shape

LEVELS = ("wholes", "parts", "subparts")

FILL = 0.68  # opacity of a mask over the photo
DIM = 0.42  # brightness of pixels without mask
LINE = 0.0018  # thickness of an outline, as a share of the picture's diagonal
DARK = (18, 20, 24)  # RGB of the casing of outlines
# Pictures whose longer side is shorter than this are drawn at twice the size and downsized, for smooth edges.
SMOOTH_BELOW = 1400  # pixels


def level_indices(forest: Forest, level: str) -> np.ndarray:
    """Indices of the masks of a level: "wholes" (depth 0), "parts" (depth 1) or "subparts" (depth 2 or more).

    Raises:
        ValueError: another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    return np.flatnonzero(np.minimum(forest.depths(), len(LEVELS) - 1) == LEVELS.index(level))


def draw_depth(
    image: np.ndarray,
    forest: Forest,
    depth: int,
    colors: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draw the masks of one depth (0: wholes) over the photo; see `draw_masks`."""
    return draw_masks(image, forest, np.flatnonzero(forest.depths() == depth), colors, size)


def draw_masks(
    image: np.ndarray,
    forest: Forest,
    indices: Sequence[int] | np.ndarray,
    colors: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Draw masks of a forest over its photo, with the outlines of their wholes as thin lines.

    Larger masks are drawn first, so that small ones stay visible; of equal areas the better-scored is on top.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) grey, of the forest's size.
        forest: the masks.
        indices: indices of the masks to draw.
        colors: (N, 3) uint8 RGB for all N masks of the forest; ``forest_colors(forest)`` by default.
        size: (H, W) of the result; the image's size by default.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ValueError: the image is not of the forest's size.
    """
    image = as_rgb(image)
    if image.shape[:2] != forest.image_size:
        raise ValueError(f"the image is {image.shape[:2]} (height, width), its forest is for {forest.image_size}")
    colors = forest_colors(forest) if colors is None else colors
    size = forest.image_size if size is None else size
    factor = 2 if max(size) < SMOOTH_BELOW else 1
    canvas_size = size[0] * factor, size[1] * factor
    photo = resize(image, canvas_size)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)[..., None]
    canvas = np.broadcast_to((grey * DIM).astype(np.uint8), photo.shape).copy()
    line = max(1, round(LINE * factor * float(np.hypot(*size))))
    for k in canonical_order(forest, np.setdiff1d(_wholes_of(forest, indices), indices)):
        _outline(canvas, scaled_shape(forest.masks[k], canvas_size), (150, 150, 150), max(1, line // 2), casing=0)
    for k in canonical_order(forest, indices):
        shape = scaled_shape(forest.masks[k], canvas_size)
        # Blend with a mostly grey photo: its colours would distort those of the masks.
        light = grey[shape.window][shape.mask].astype(np.float32)
        ground = 0.8 * light + 0.2 * photo[shape.window][shape.mask]
        canvas[shape.window][shape.mask] = np.clip(
            FILL * (0.55 + 0.65 * light / 255) * colors[k] + (1 - FILL) * ground, 0, 255
        )
        # Small and thin masks get a hairline; otherwise outlines would hide them.
        thin = shape.mask.sum() < 10 * line * max(1, *shape.mask.shape)
        if thin:
            _outline(canvas, shape, _lighter(colors[k], 0.4), max(1, line // 2), casing=0)
        else:
            _outline(canvas, shape, _lighter(colors[k], 0.65), line, casing=line)
    return cv2.resize(canvas, size[::-1], interpolation=cv2.INTER_AREA) if factor > 1 else canvas


def _wholes_of(forest: Forest, indices: Sequence[int] | np.ndarray) -> np.ndarray:
    """The whole of each of some masks."""
    roots = np.asarray(indices, np.int64)
    while (above := forest.parents[roots] != NO_PARENT).any():
        roots = np.where(above, forest.parents[roots], roots)
    return roots


def _outline(canvas: np.ndarray, shape: Shape, color: Sequence[int] | np.ndarray, thickness: int, casing: int) -> None:
    """Draw the outline of a shape in place, with a dark casing for contrast on any background."""
    contours, _ = cv2.findContours(
        shape.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(shape.x, shape.y)
    )
    if casing:
        cv2.drawContours(canvas, contours, -1, DARK, thickness + 2 * casing, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, [int(v) for v in color], thickness, cv2.LINE_AA)


def _lighter(color: np.ndarray, white: float) -> np.ndarray:
    """Mix the colour with a share of white."""
    return ((1 - white) * color + white * 255).astype(np.uint8)

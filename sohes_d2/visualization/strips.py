"""Whole-to-part strips: a whole, its part, the part of that part, and so on, with increasing zoom."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ..structures.forest import NO_PARENT, Forest
from .colors import canonical_order, forest_colors
from .primitives import INK, MUTED, NARROW, PANEL, REFERENCE_WIDTH, as_rgb, drawing_scale, font, paste_cutout

# Sizes are pixels at REFERENCE_WIDTH.
TILE, ARROW, STRIP_GAP, MARGIN = 220, 44, 60, 24
LEAST_TILES = 3  # smallest number of tiles per row
MAX_ROWS, NARROW_MAX_ROWS = 3, 5
_NAMES = ("whole", "part", "subpart")


def draw_strips(
    image: np.ndarray,
    forest: Forest,
    colors: np.ndarray | None = None,
    width: int = REFERENCE_WIDTH,
) -> np.ndarray:
    """Draw the longest path from each whole to a descendant, best wholes first.

    Each tile shows a mask cut out of the photo and framed in its colour, with the mask of the next tile tinted. The
    level and share of the photo are printed below. Paths that do not fit in a row are subsampled between their ends.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) grey, of the forest's size.
        forest: the masks.
        colors: (N, 3) uint8 RGB; ``forest_colors(forest)`` by default.
        width: width of the result in pixels; there are at most three rows, or five if it is below NARROW.

    Returns:
        (H, width, 3) uint8 RGB; the height depends on the content.
    """
    image = as_rgb(image)
    colors = forest_colors(forest) if colors is None else colors
    scale = drawing_scale(width)
    margin, arrow, gap = round(MARGIN * scale), round(ARROW * scale), round(STRIP_GAP * scale)
    room = width - 2 * margin
    side = min(round(TILE * scale), (room - (LEAST_TILES - 1) * arrow) // LEAST_TILES)
    most = (room + arrow) // (side + arrow)
    rows = _rows(_chains(forest, most), room, side, arrow, gap)
    rows = rows[: MAX_ROWS if width >= NARROW else NARROW_MAX_ROWS]

    text = round(20 * scale)
    heading = margin + text + round(16 * scale)
    row_height = side + round(30 * scale) + round(24 * scale)
    height = heading + row_height * len(rows) + (0 if rows else round(10 * scale))
    picture = Image.new("RGB", (width, height), PANEL)
    pen = ImageDraw.Draw(picture)
    shown = sum(len(row) for row in rows)
    title = f"From whole to part   ({shown} of {len(forest.roots())} wholes)" if rows else "No whole here has parts"
    pen.text((margin, margin), title, INK, font=font(text))
    depths = forest.depths()
    shares = forest.areas / (image.shape[0] * image.shape[1])
    y = heading + round(10 * scale)
    for row in rows:
        x = margin
        for chain in row:
            for position, k in enumerate(chain):
                following = chain[position + 1] if position + 1 < len(chain) else None
                paste_cutout(picture, image, forest, colors, k, (x, y), side, scale, inner=following)
                label = f"{_NAMES[min(depths[k], 2)]}  {_percent(shares[k])}"
                pen.text((x + side // 2, y + side + round(6 * scale)), label, MUTED, font=font(text), anchor="mt")
                x += side
                if following is not None:
                    _arrow(pen, x, y + side // 2, arrow, scale)
                    x += arrow
            x += gap
        y += row_height
    return np.asarray(picture)


def _chains(forest: Forest, most: int) -> list[list[int]]:
    """Per whole with parts, the path to its deepest descendant, of at most ``most`` masks; best wholes first."""
    weights = np.sqrt(forest.areas) * forest.scores
    reach = np.zeros(len(forest), np.int64)  # length of the longest path below each mask
    for k in np.argsort(-forest.depths(), kind="stable"):
        if forest.parents[k] != NO_PARENT:
            reach[forest.parents[k]] = max(reach[forest.parents[k]], reach[k] + 1)
    chains = []
    for root in canonical_order(forest, forest.roots()):
        if not reach[root]:
            continue
        chain = [root]
        while reach[chain[-1]]:
            children = canonical_order(forest, forest.children(chain[-1]))
            chain.append(max(children, key=lambda k: (reach[k], weights[k])))
        chains.append(chain)
    chains.sort(key=lambda chain: -weights[chain[0]] * np.log1p(reach[chain[0]]))
    return [
        [chain[k] for k in np.linspace(0, len(chain) - 1, min(most, len(chain))).round().astype(int)]
        for chain in chains
    ]


def _rows(chains: list[list[int]], room: int, side: int, arrow: int, gap: int) -> list[list[list[int]]]:
    """Arrange strips in rows: each row takes the first remaining strip, then others that still fit."""
    rows = []
    left = list(chains)
    while left:
        row, used = [], -gap
        for chain in list(left):
            needed = len(chain) * side + (len(chain) - 1) * arrow + gap
            if used + needed <= room:
                row.append(chain)
                left.remove(chain)
                used += needed
        rows.append(row)
    return rows


def _arrow(pen: ImageDraw.ImageDraw, x: int, y: int, length: int, scale: float) -> None:
    pad, head, line = length // 5, round(8 * scale), round(3 * scale)
    tip = x + length - pad
    pen.line((x + pad, y, tip - head, y), fill=MUTED, width=line)
    pen.polygon([(tip, y), (tip - head, y - head), (tip - head, y + head)], fill=MUTED)


def _percent(share: float) -> str:
    """Format a share of the photo, with two digits if it is small."""
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"

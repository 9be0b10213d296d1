"""Drawing of the trees of a forest: wholes, parts and subparts as cut-outs of the photo."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

from ..structures.forest import Forest
from .colors import canonical_order, forest_colors
from .primitives import INK, MUTED, NARROW, PANEL, REFERENCE_WIDTH, RULE, as_rgb, drawing_scale, font, paste_cutout

# Sizes are pixels at REFERENCE_WIDTH.
TILES, BORDERS = (136, 98, 66), (5, 4, 3)  # side and frame width of the cut-outs of wholes, parts, subparts
ROW_GAPS = (40, 32)  # between wholes and parts, between parts and subparts
GAP, FAMILY_GAP, MARGIN = 12, 44, 24
# Candidate limits of parts per whole and subparts per part; the one that fills the rows best is used.
MAX_CHILDREN = ((6, 3), (4, 3), (4, 2))
NARROW_MAX_CHILDREN = ((3, 2), (2, 2), (2, 1), (1, 1))
MAX_ROWS, NARROW_MAX_ROWS = 2, 4


@dataclass
class _Node:
    """A cut-out and its children; ``index`` is None for a note on omitted masks."""

    index: int | None
    depth: int
    note: str = ""
    children: list[_Node] = field(default_factory=list)

    def width(self, scale: float) -> int:
        below = sum(c.width(scale) for c in self.children) + round(GAP * scale) * max(0, len(self.children) - 1)
        return max(round(TILES[self.depth] * scale), below)

    def height(self, scale: float) -> int:
        below = max((c.height(scale) for c in self.children), default=0)
        own = round(TILES[self.depth] * scale)
        return own + (round(ROW_GAPS[self.depth] * scale) + below if below else round(18 * scale) if self.note else 0)


def draw_tree(
    image: np.ndarray,
    forest: Forest,
    colors: np.ndarray | None = None,
    width: int = REFERENCE_WIDTH,
) -> np.ndarray:
    """Draw the main families (a whole with its descendants) as trees of cut-outs, with counts of omitted masks.

    Families are ranked by size, score and number of descendants. The frame of a cut-out has the same colour as the
    mask in the overlays.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) grey, of the forest's size.
        forest: the masks.
        colors: (N, 3) uint8 RGB; ``forest_colors(forest)`` by default.
        width: width of the result in pixels; there are at most two rows of families, or four if it is below NARROW.

    Returns:
        (H, width, 3) uint8 RGB; the height depends on the content.
    """
    image = as_rgb(image)
    colors = forest_colors(forest) if colors is None else colors
    scale = drawing_scale(width)
    rows, shown = _arrange(forest, width, scale)
    margin, row_gap, text = round(MARGIN * scale), round(34 * scale), round(20 * scale)
    top = margin + text + round(14 * scale)
    heights = [max(node.height(scale) for node in row) for row in rows]
    height = top + sum(heights) + row_gap * (len(rows) - 1) + margin
    picture = Image.new("RGB", (width, height if rows else 2 * margin + text), PANEL)
    drawing = _Drawing(picture, image, forest, colors, scale)
    drawing.pen.text((margin, margin), _heading(forest, shown), INK, font=font(text))
    y = top
    for row, row_height in zip(rows, heights):
        widths = [node.width(scale) for node in row]
        spare = width - 2 * margin - sum(widths)
        step = spare / len(row)  # equal space around every family
        if len(row) > 1:
            step = min(step, 3 * FAMILY_GAP * scale)
        x = margin + (spare - step * len(row)) / 2 + step / 2
        for node, node_width in zip(row, widths):
            drawing.draw(node, round(x), y, node_width)
            x += node_width + step
        y += row_height + row_gap
    return np.asarray(picture)


def _arrange(forest: Forest, width: int, scale: float) -> tuple[list[list[_Node]], int]:
    """Families in rows that fit the width, best first, and the number of shown masks."""
    if not len(forest):
        return [], 0
    weights = np.sqrt(forest.areas) * forest.scores
    below = forest.ancestors().sum(axis=1)
    families = [k for k in canonical_order(forest, forest.roots()) if forest.areas[k]]
    # Wholes without parts only fill the remaining space.
    families.sort(key=lambda k: (below[k] == 0, -weights[k] * (1 + np.log1p(below[k]))))
    room = width - 2 * round(MARGIN * scale)
    is_narrow = width < NARROW
    max_rows, layouts = (NARROW_MAX_ROWS, NARROW_MAX_CHILDREN) if is_narrow else (MAX_ROWS, MAX_CHILDREN)
    arrangements = []
    for limits in layouts:
        rows = _rows([_family(forest, k, weights, below, limits) for k in families], room, scale, max_rows)
        arrangements.append((rows, sum(_count(node) for row in rows for node in row)))
    return max(arrangements, key=lambda arrangement: arrangement[1] / max(1, len(arrangement[0])))


def _rows(families: list[_Node], room: int, scale: float, max_rows: int) -> list[list[_Node]]:
    """Arrange families in rows of at most ``room`` pixels, in order; those that do not fit are omitted."""
    gap = round(FAMILY_GAP * scale)
    rows: list[list[_Node]] = [[]]
    used = 0
    for node in families:
        needed = node.width(scale) + (gap if rows[-1] else 0)
        if used + needed > room:
            if len(rows) == max_rows or not node.children or node.width(scale) > room:
                continue
            rows.append([])
            used, needed = 0, node.width(scale)
        rows[-1].append(node)
        used += needed
    return [row for row in rows if row]


def _family(
    forest: Forest, index: int, weights: np.ndarray, below: np.ndarray, limits: tuple[int, ...], depth: int = 0
) -> _Node:
    """A mask with its largest, best-scored children, recursively to the depth of ``limits``."""
    node = _Node(index, depth)
    if depth == len(limits):
        node.note = f"+{below[index]}" if below[index] else ""
        return node
    order = canonical_order(forest, forest.children(index))
    kept = set(sorted(order, key=lambda k: -weights[k])[: limits[depth]])
    node.children = [_family(forest, k, weights, below, limits, depth + 1) for k in order if k in kept]
    if len(kept) < len(order):
        node.children.append(_Node(None, depth + 1, f"+{len(order) - len(kept)}"))
    return node


def _count(node: _Node) -> int:
    return (node.index is not None) + sum(_count(child) for child in node.children)


def _heading(forest: Forest, shown: int) -> str:
    if not len(forest):
        return "No masks"
    rest = len(forest) - shown
    return "Whole, its parts, their subparts" + (f"   ({shown} of {len(forest)} masks)" if rest else "")


@dataclass
class _Drawing:
    """State of a drawing, shared by its cut-outs."""

    picture: Image.Image
    image: np.ndarray
    forest: Forest
    colors: np.ndarray
    scale: float

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.picture)

    def pixels(self, size: float) -> int:
        """Convert a length at REFERENCE_WIDTH to pixels of this picture."""
        return round(size * self.scale)

    def draw(self, node: _Node, x: int, y: int, width: int) -> None:
        """Draw a node, centred in the width, and its descendants."""
        side, centre = self.pixels(TILES[node.depth]), x + width // 2
        label = font(self.pixels(20 if node.depth < 2 else 17))
        if node.index is None:
            frame = (centre - side // 2 + 2, y + 2, centre - side // 2 + side - 3, y + side - 3)
            self.pen.rounded_rectangle(frame, radius=self.pixels(8), outline=RULE, width=self.pixels(2))
            self.pen.text((centre, y + side / 2), node.note, MUTED, font=label, anchor="mm")
            return
        if node.children:
            self._children(node, centre, y + side)
        elif node.note:
            self.pen.text((centre, y + side + self.pixels(3)), node.note, MUTED, font=label, anchor="mt")
        place, border = (centre - side // 2, y), BORDERS[node.depth]
        paste_cutout(self.picture, self.image, self.forest, self.colors, node.index, place, side, self.scale, border)

    def _children(self, node: _Node, centre: int, bottom: int) -> None:
        """Draw the children below a cut-out that ends at ``bottom``, and the lines to them."""
        drop, gap = self.pixels(ROW_GAPS[node.depth]), self.pixels(GAP)
        widths = [child.width(self.scale) for child in node.children]
        x = centre - (sum(widths) + gap * (len(widths) - 1)) // 2
        middle, line = bottom + drop // 2, self.pixels(3)
        color = tuple(int(v) for v in self.colors[node.index])
        self.pen.line((centre, bottom, centre, middle), fill=color, width=line)
        for child, width in zip(node.children, widths):
            child_centre = x + width // 2
            self.pen.line((centre, middle, child_centre, middle), fill=color, width=line)
            self.pen.line((child_centre, middle, child_centre, bottom + drop), fill=color, width=line)
            self.draw(child, x, bottom + drop, width)
            x += width + gap

"""Figure of a forest: the photo, its wholes, parts and subparts side by side, and the tree below."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..structures.forest import Forest
from .colors import forest_colors
from .overlay import LEVELS, draw_masks, level_indices
from .primitives import INK, MUTED, NARROW, REFERENCE_WIDTH, as_rgb, drawing_scale, font, resize
from .tree import draw_tree

MARGIN, GAP = 24, 14  # pixels at REFERENCE_WIDTH
# More masks are hard to read in one figure; labels of phase 1 have several hundred, most of low score.
MAX_MASKS = 60
MIN_WIDTH = 240  # pixels
# Photos are drawn in two columns from the first aspect ratio (width / height) on, and in one column from the second on.
TWO_COLUMNS, ONE_COLUMN = 2.4, 6.0
# Limits of the drawn aspect ratio; a panorama of 20000x50 is squeezed, so that masks stay visible.
FLATTEST, STEEPEST = 16.0, 1 / 3

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}$")  # of a file name
_MAX_STEM = 100  # characters


def forest_figure(
    image: np.ndarray,
    forest: Forest,
    title: str = "",
    width: int = REFERENCE_WIDTH,
    max_masks: int = MAX_MASKS,
    max_area: float = 1.0,
) -> np.ndarray:
    """Draw the photo, wholes, parts, subparts, and the tree of the largest families in one picture.

    Args:
        image: (H, W, 3) uint8 RGB, or (H, W) grey, of the forest's size.
        forest: its masks; may be empty.
        title: printed above, for example the file name.
        width: width of the result in pixels, at least MIN_WIDTH; text and lines scale with it down to NARROW, below
            which photos are drawn in two columns and the tree shows less.
        max_masks: if there are more masks, only the best-scored ones are shown, each linked to its nearest shown
            ancestor, with a note in the figure; 0 shows all.
        max_area: masks with a larger share of the image are dropped in the same way: labels of phase 1 contain masks
            of nearly the whole image, which would hide the other wholes.

    Returns:
        (height, width, 3) uint8 RGB; the height depends on the photo's shape and the tree.

    Raises:
        ValueError: the image is not of the forest's size, or the width is too small.
    """
    if width < MIN_WIDTH:
        raise ValueError(f"a figure needs at least {MIN_WIDTH} pixels of width, got {width}")
    image = as_rgb(image)
    total = len(forest)
    if max_area < 1:
        forest = forest.subset(forest.areas <= max_area * image.shape[0] * image.shape[1])
    is_limited = 0 < max_masks < len(forest)
    if is_limited:
        forest = best_scored(forest, max_masks)
    colors = forest_colors(forest)
    scale = drawing_scale(width)
    margin, gap = round(MARGIN * scale), round(GAP * scale)
    columns, size = _panel_layout(forest.image_size, width - 2 * margin, gap, 4 if width >= NARROW else 2)
    levels = [level_indices(forest, level) for level in LEVELS]
    pictures = [resize(image, size)] + [draw_masks(image, forest, some, colors, size) for some in levels]
    captions = [("Photo", f"{image.shape[1]} x {image.shape[0]}")]
    captions += [(level.capitalize(), str(len(some))) for level, some in zip(LEVELS, levels)]
    tree = draw_tree(image, forest, colors, width - 2 * margin)

    limit = f", none over {max_area:.0%} of the photo" if max_area < 1 else ""
    shown = f"the {len(forest)} best-scored" if is_limited else str(len(forest))
    note = f"{shown} of {total} masks{limit}" if len(forest) < total else ""
    if width < NARROW:
        note = note.replace("best-scored", "best").removesuffix(" of the photo")
    title_height = round(46 * scale) if title or note else 0
    note_height = round(30 * scale) if note and width < NARROW else 0  # no room beside the title
    caption_height = round(34 * scale)
    rows = len(pictures) // columns
    height = margin + title_height + note_height + rows * (size[0] + caption_height + gap) + tree.shape[0] + margin
    figure = Image.new("RGB", (width, height), (255, 255, 255))
    pen = ImageDraw.Draw(figure)
    y = margin - round(4 * scale)
    if title:
        room = (width - 2 * margin) * (2 if note and not note_height else 3) // 3
        pen.text((margin, y), _shortened(pen, title, room, font(round(30 * scale))), INK, font=font(round(30 * scale)))
    if note_height:
        pen.text((margin, y + title_height), note, MUTED, font=font(round(22 * scale)))
    elif note:
        pen.text((width - margin, y + round(6 * scale)), note, MUTED, font=font(round(22 * scale)), anchor="ra")
    top = margin + title_height + note_height
    for k, (picture, (strong, weak)) in enumerate(zip(pictures, captions)):
        x = margin + (k % columns) * (size[1] + gap)
        y = top + (k // columns) * (size[0] + caption_height + gap)
        text = font(round(22 * scale))
        pen.text((x, y), strong, INK, font=text)
        pen.text((x + pen.textlength(strong + "  ", font=text), y), weak, MUTED, font=text)
        figure.paste(Image.fromarray(picture), (x, y + caption_height))
    figure.paste(Image.fromarray(tree), (margin, height - margin - tree.shape[0]))
    return np.asarray(figure)


def best_scored(forest: Forest, count: int) -> Forest:
    """The forest of the ``count`` best-scored masks; ties: the larger ones."""
    return forest.subset(np.sort(np.lexsort((-forest.areas, -forest.scores))[:count]))


def _panel_layout(image_size: tuple[int, int], room: int, gap: int, max_columns: int) -> tuple[int, tuple[int, int]]:
    """Number of columns (at most ``max_columns``) and (H, W) of a panel, in a figure ``room`` pixels wide."""
    aspect = min(max(image_size[1] / image_size[0], STEEPEST), FLATTEST)
    columns = min(max_columns, 4 if aspect < TWO_COLUMNS else 2 if aspect < ONE_COLUMN else 1)
    width = (room - gap * (columns - 1)) // columns
    return columns, (max(1, round(width / aspect)), width)


def _shortened(pen: ImageDraw.ImageDraw, text: str, room: int, typeface: Any) -> str:
    """The text, truncated with dots if it does not fit."""
    text = " ".join(text.split())
    shown = text
    while shown and pen.textlength(shown, font=typeface) > room:
        text = text[:-1]
        shown = text + "..."
    return shown


def file_stem(file_name: str, taken: set[str]) -> str:
    """A unique output name without suffix for an image; it is added to ``taken``.

    Folders become part of the name; characters other than letters, digits, dots, dashes and underscores become "_", and
    the name neither starts nor ends with a dot.

    Args:
        file_name: file name of the image.
        taken: lower-case names used so far, since some file systems do not distinguish A.png from a.png.
    """
    name = re.sub(r"[^\w.-]+", "_", _SUFFIX.sub("", file_name)).strip("._-")[:_MAX_STEM] or "image"
    candidate, number = name, 1
    while candidate.lower() in taken:
        number += 1
        candidate = f"{name}-{number}"
    taken.add(candidate.lower())
    return candidate

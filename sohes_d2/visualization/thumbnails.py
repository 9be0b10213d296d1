"""Thumbnails of masks, and the fonts, greys and scales shared by all figures."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .overlay import resize

INK, MUTED, RULE, PANEL = (31, 35, 40), (101, 109, 118), (208, 215, 222), (246, 248, 250)
REFERENCE_WIDTH = 1600  # sizes of figures are pixels at this width and scale with it
NARROW = 800  # narrower figures keep the sizes of this width
SMALLEST_TYPE = 10  # pixels
INNER_TINT = 0.4  # opacity of a mask that is shown inside another one


def thumbnail(
    image: np.ndarray,
    mask: np.ndarray,
    box: np.ndarray,
    side: int,
    color: np.ndarray,
    inner: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """(side, side, 3) uint8 cut-out of a photo: the mask in full colour with outline, its surroundings faded.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
        box: (x, y, width, height) of the mask.
        side: in pixels.
        color: (3,) uint8 RGB of the outline.
        inner: another mask (H, W) and its colour, drawn on top with tint and outline.
    """
    x, y, w, h = (int(v) for v in box)
    window = max(w, h) + 2 * max(2, round(0.1 * max(w, h)))
    rows, cols = _inside(y + h / 2, window, mask.shape[0]), _inside(x + w / 2, window, mask.shape[1])
    crop, inside = image[rows, cols], mask[rows, cols]
    # Thin masks keep a few pixels of height to stay visible.
    size = tuple(max(min(side, 6), round(side * v / max(crop.shape[:2]))) for v in crop.shape[:2])
    alpha = _soft(inside, size)
    photo = resize(np.ascontiguousarray(crop), size).astype(np.float32)
    washed = 255 - 0.16 * (255 - photo.mean(axis=2, keepdims=True))
    cut = np.clip(alpha[..., None] * photo + (1 - alpha[..., None]) * washed, 0, 255).astype(np.uint8)
    _outline(cut, alpha, color, side)
    if inner is not None:
        weight = _soft(inner[0][rows, cols], size)
        tint = INNER_TINT * weight[..., None]
        cut = ((1 - tint) * cut + tint * inner[1]).astype(np.uint8)
        _outline(cut, weight, inner[1], side)
    tile = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - size[0]) // 2, (side - size[1]) // 2
    tile[top : top + size[0], left : left + size[1]] = cut
    return tile


def framed(picture: np.ndarray, color: np.ndarray, border: int, radius: int) -> tuple[Image.Image, Image.Image]:
    """A square picture in a frame with rounded corners, and the (L) mask to paste it with.

    Args:
        picture: (side, side, 3) uint8 RGB.
        color: (3,) uint8 RGB of the frame.
        border: width of the frame in pixels, added on each side.
        radius: radius of the corners, in pixels.
    """
    side = picture.shape[0] + 2 * border
    frame = Image.new("RGB", (side, side), tuple(int(v) for v in color))
    frame.paste(Image.fromarray(picture), (border, border))
    corners = Image.new("L", (4 * side, 4 * side), 0)  # drawn large and downsized, for smooth edges
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), radius=4 * radius, fill=255)
    return frame, corners.resize((side, side), Image.Resampling.LANCZOS)


def drawing_scale(width: int) -> float:
    """Scale of lengths in a picture of ``width`` pixels, relative to REFERENCE_WIDTH; constant below NARROW.

    Narrower layouts use fewer columns instead, to stay readable.
    """
    return max(width, NARROW) / REFERENCE_WIDTH


def _soft(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a mask to float32 in [0, 1] with smooth edges."""
    alpha = resize(mask.astype(np.float32), size)
    enlarged = max(size) / max(mask.shape)
    if enlarged > 1:  # smooth the steps of single pixels
        alpha = np.clip(2 * cv2.GaussianBlur(alpha, (0, 0), 0.6 * enlarged) - 0.5, 0, 1)
    return alpha


def _outline(cut: np.ndarray, alpha: np.ndarray, color: np.ndarray, side: int) -> None:
    contours, _ = cv2.findContours((alpha >= 0.5).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    contours = [contour for contour in contours if cv2.contourArea(contour) > 0.003 * side * side]  # no specks
    cv2.drawContours(cut, contours, -1, [int(v) for v in color], max(1, round(side / 90)), cv2.LINE_AA)


def _inside(centre: float, window: int, length: int) -> slice:
    """A slice of ``window`` pixels around the centre, shifted into ``[0, length)``, or truncated if that is shorter."""
    start = min(max(0, round(centre - window / 2)), max(0, length - window))
    return slice(start, min(length, start + window))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's built-in typeface (10.1 and newer), so that pictures look the same on every machine."""
    return ImageFont.load_default(max(SMALLEST_TYPE, size))

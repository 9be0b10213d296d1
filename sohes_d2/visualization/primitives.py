"""Parts of all pictures: photos and masks at drawing size, cut-outs of masks, fonts, greys and scales."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..structures.forest import Forest
from ..structures.masks import RLE, decode_mask, mask_boxes

INK, MUTED, RULE, PANEL = (31, 35, 40), (101, 109, 118), (208, 215, 222), (246, 248, 250)
REFERENCE_WIDTH = 1600  # sizes of figures are pixels at this width and scale with it
NARROW = 800  # narrower figures keep the sizes of this width
SMALLEST_TYPE = 10  # pixels
INNER_TINT = 0.4  # opacity of a mask that is shown inside another one


def as_rgb(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a grey (H, W), (H, W, 1) or colour (H, W, 3 or 4) uint8 image.

    Raises:
        ValueError: another shape or type.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype != np.uint8:
        raise ValueError(f"an image must be (H, W, 3) uint8 RGB or (H, W) uint8 grey, got {image.shape} {image.dtype}")
    return np.ascontiguousarray(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3])


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image to (H, W), with area interpolation to shrink it and bicubic to enlarge it."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = size[0] < image.shape[0] or size[1] < image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


@dataclass(frozen=True)
class Shape:
    """A mask cropped to its box on a canvas.

    Attributes:
        y, x: position of the patch on the canvas, in pixels.
        mask: (h, w) bool patch; at least one pixel is set unless the mask itself is empty.
    """

    y: int
    x: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Slices of the patch on the canvas, to index an (H, W, ...) array."""
        return slice(self.y, self.y + self.mask.shape[0]), slice(self.x, self.x + self.mask.shape[1])


def scaled_shape(rle: RLE, size: tuple[int, int]) -> Shape:
    """Scale a mask to a canvas of another size (axes may scale differently). Small masks keep at least one pixel.

    Args:
        rle: mask of any size.
        size: (H, W) of the canvas.
    """
    x, y, width, height = (int(v) for v in mask_boxes([rle])[0])
    if not width or not height:
        return Shape(0, 0, np.zeros((0, 0), dtype=bool))
    mask = decode_mask(rle)
    rows, out_rows = _spans(y, y + height, mask.shape[0], size[0])
    cols, out_cols = _spans(x, x + width, mask.shape[1], size[1])
    patch = np.ascontiguousarray(mask[rows, cols]).astype(np.uint8) * 255
    out_size = (out_cols.stop - out_cols.start, out_rows.stop - out_rows.start)
    if out_size != patch.shape[::-1]:
        shrinks = out_size[0] < patch.shape[1] or out_size[1] < patch.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        patch = np.asarray(cv2.resize(patch, out_size, interpolation=how), np.uint8)
    return Shape(out_rows.start, out_cols.start, patch >= min(128, max(1, int(patch.max()))))


def _spans(low: int, high: int, source: int, target: int) -> tuple[slice, slice]:
    """Matching slices of a source and a target axis that cover the source's ``[low, high)``, in whole coarse pixels."""
    scale = target / source
    if scale >= 1:
        low, high = max(low - 1, 0), min(high + 1, source)  # room for the interpolated edge
        return slice(low, high), slice(round(low * scale), round(high * scale))
    start = min(int(low * scale), target - 1)
    stop = min(max(start + 1, int(np.ceil(high * scale))), target)
    return slice(int(start / scale), min(int(np.ceil(stop / scale)), source)), slice(start, stop)


def paste_cutout(
    picture: Image.Image,
    image: np.ndarray,
    forest: Forest,
    colors: np.ndarray,
    index: int,
    place: tuple[int, int],
    side: int,
    scale: float,
    border: int = 5,
    inner: int | None = None,
) -> None:
    """Paste a square cut-out of a photo: a mask in full colour with outline, its surroundings faded, in a round frame.

    Args:
        picture: the picture to paste into.
        image: (H, W, 3) uint8 RGB photo.
        forest: its masks.
        colors: (N, 3) uint8 RGB of the masks, for outlines and frame.
        index: the mask.
        place: (x, y) of the upper left corner.
        side: size with the frame, in pixels.
        scale: see `drawing_scale`.
        border: width of the frame at REFERENCE_WIDTH.
        inner: another mask, drawn on top with tint and outline.
    """
    mask, color, width = decode_mask(forest.masks[index]), colors[index], round(border * scale)
    room = side - 2 * width
    x, y, w, h = (int(v) for v in forest.boxes[index])
    window = max(w, h) + 2 * max(2, round(0.1 * max(w, h)))
    rows, cols = _inside(y + h / 2, window, mask.shape[0]), _inside(x + w / 2, window, mask.shape[1])
    crop = image[rows, cols]
    # Thin masks keep a few pixels of height to stay visible.
    size = tuple(max(min(room, 6), round(room * v / max(crop.shape[:2]))) for v in crop.shape[:2])
    alpha = _soft(mask[rows, cols], size)
    photo = resize(np.ascontiguousarray(crop), size).astype(np.float32)
    washed = 255 - 0.16 * (255 - photo.mean(axis=2, keepdims=True))
    cut = np.clip(alpha[..., None] * photo + (1 - alpha[..., None]) * washed, 0, 255).astype(np.uint8)
    _outline(cut, alpha, color, room)
    if inner is not None:
        weight = _soft(decode_mask(forest.masks[inner])[rows, cols], size)
        tint = INNER_TINT * weight[..., None]
        cut = ((1 - tint) * cut + tint * colors[inner]).astype(np.uint8)
        _outline(cut, weight, colors[inner], room)
    frame = Image.new("RGB", (side, side), tuple(int(v) for v in color))
    frame.paste((255, 255, 255), (width, width, side - width, side - width))
    frame.paste(Image.fromarray(cut), (width + (room - size[1]) // 2, width + (room - size[0]) // 2))
    corners = Image.new("L", (4 * side, 4 * side), 0)  # drawn large and downsized, for smooth edges
    pen = ImageDraw.Draw(corners)
    pen.rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), radius=4 * round(9 * scale), fill=255)
    picture.paste(frame, place, corners.resize((side, side), Image.Resampling.LANCZOS))


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

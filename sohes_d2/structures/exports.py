"""Exports of a forest, the methods ``to_...`` and `plot` of `Forest`: arrays, tables, detections, dicts, pictures."""

from __future__ import annotations

import base64
import colorsys
import html
import importlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from .images import as_rgb
from .masks import decode_mask, decode_masks

if TYPE_CHECKING:
    from .forest import Forest

_ALPHA = 0.5  # opacity of a mask over the photo
_GOLDEN = 0.618034  # step between hues, as a share of the colour circle: hues never repeat
_HTML_SIDE = 480  # pixels of the longer side in a notebook
_HTML_ROWS = 10


def to_numpy(forest: Forest) -> np.ndarray:
    """(N, H, W) bool, all masks."""
    return decode_masks(forest.masks) if len(forest) else np.zeros((0, *forest.image_size), bool)


def to_pandas(forest: Forest) -> Any:
    """A ``pandas.DataFrame`` with a row per mask, by path name: parent, depth, score, area, box, level, source.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = _library("pandas")
    boxes = forest.boxes.astype(np.int64)
    names = forest.names
    return pandas.DataFrame(
        {
            "parent": [names[k] if k >= 0 else None for k in forest.parents],
            "depth": forest.depths(),
            "score": forest.scores,
            "area": forest.areas,
            **{column: boxes[:, k] for k, column in enumerate(("x", "y", "width", "height"))},
            "level": forest.levels,
            "source": forest.sources,
        },
        index=pandas.Index(names, name="name"),
    )


def to_supervision(forest: Forest) -> Any:
    """``supervision.Detections`` of all masks, with ``name``, ``parent`` ("" for a whole) and ``depth`` as data.

    Raises:
        ImportError: supervision is not installed.
    """
    supervision = _library("supervision")
    names = forest.names
    boxes = forest.boxes.astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return supervision.Detections(
        xyxy=boxes,
        mask=to_numpy(forest),
        confidence=forest.scores.copy(),
        class_id=np.zeros(len(forest), int),
        data={
            "name": np.array(names),
            "parent": np.array([names[k] if k >= 0 else "" for k in forest.parents]),
            "depth": forest.depths(),
        },
    )


def to_sam(forest: Forest) -> list[dict[str, Any]]:
    """Dicts in the format of ``SamAutomaticMaskGenerator.generate``, by descending area.

    ``segmentation`` is (H, W) bool, ``bbox`` (x, y, width, height); ``predicted_iou`` and ``stability_score`` are both
    the score; ``point_coords`` is the mask pixel nearest to its centre.
    """
    height, width = forest.image_size
    records = []
    for k in np.argsort(-forest.areas, kind="stable"):
        mask = decode_mask(forest.masks[k])
        score = float(forest.scores[k])
        records.append(
            {
                "segmentation": mask,
                "area": int(forest.areas[k]),
                "bbox": [int(v) for v in forest.boxes[k]],
                "predicted_iou": score,
                "point_coords": [_point_inside(mask)],
                "stability_score": score,
                "crop_box": [0, 0, width, height],
            }
        )
    return records


def _point_inside(mask: np.ndarray) -> list[float]:
    """[x, y] of the mask pixel nearest to the centre of the mask; zeros for an empty mask."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return [0.0, 0.0]
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return [float(xs[nearest]), float(ys[nearest])]


def plot(forest: Forest, photo: Any = None, max_depth: int | None = None, names: bool = False) -> Image.Image:
    """Draw the masks over the photo, parts in shades of the colour of their whole.

    Args:
        forest: the masks.
        photo: background, anything `images.as_rgb` accepts; by default ``forest.photo``, else grey.
        max_depth: deeper masks are not drawn; None for all.
        names: write the path name on each mask.

    Returns:
        A Pillow image of the size of the photo.

    Raises:
        ValueError: a photo of another size.
    """
    photo = forest.photo if photo is None else as_rgb(photo)
    if photo is None:
        photo = np.full((*forest.image_size, 3), 128, np.uint8)
    if photo.shape[:2] != forest.image_size:
        raise ValueError(f"the photo is {photo.shape[:2]} (height, width), the forest {forest.image_size}")
    depths = forest.depths()
    order = np.lexsort((-forest.areas, depths))
    if max_depth is not None:
        order = order[depths[order] <= max_depth]
    picture = photo.astype(np.float32)
    for k in order:
        colour = np.array(_colour(forest, int(k), int(depths[k])), np.float32)
        x, y, width, height = (int(v) for v in forest.boxes[k])
        inside = decode_mask(forest.masks[k])[y : y + height, x : x + width]
        window = picture[y : y + height, x : x + width]
        window[inside] = (1 - _ALPHA) * window[inside] + _ALPHA * colour
        padded = np.pad(inside, 1)
        border = inside & ~(padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:])
        window[border] = colour
    image = Image.fromarray(picture.round().astype(np.uint8))
    if names:
        pen = ImageDraw.Draw(image)
        for k in order:
            column, row = _point_inside(decode_mask(forest.masks[k]))
            pen.text((column, row), forest.names[k], fill="white", stroke_width=2, stroke_fill="black", anchor="mm")
    return image


def _colour(forest: Forest, k: int, depth: int) -> tuple[int, ...]:
    root = int(forest.names[k].split(".", 1)[0])
    shade = (0.5, 0.7, 0.35)[depth % 3]
    return tuple(round(255 * v) for v in colorsys.hls_to_rgb((root * _GOLDEN) % 1, shade, 0.85))


def to_html(forest: Forest) -> str:
    """A picture, and a table of the best-scored masks, for a notebook."""
    shown = forest if len(forest) <= 100 else forest.collapse()
    picture = plot(shown, names=len(shown) <= 30)
    picture.thumbnail((_HTML_SIDE, _HTML_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    rows = "".join(
        f"<tr><td>{e.name}</td><td>{e.score:.3f}</td><td>{e.area}</td><td>{len(e.children)}</td></tr>"
        for e in sorted(shown, key=lambda entity: -entity.score)[:_HTML_ROWS]
    )
    title = html.escape(repr(forest))
    return (
        f'<figure style="margin:0"><img alt="{title}" src="{source}"><figcaption>{title}</figcaption></figure>'
        f"<table><tr><th>name</th><th>score</th><th>pixels</th><th>parts</th></tr>{rows}</table>"
    )


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"to_{name} needs {name}: pip install {name}") from error

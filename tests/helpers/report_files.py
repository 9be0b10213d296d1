"""Small label files and photos for the tests of the page, and a reader of the data in a page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks, rle_to_json

SIZE = (60, 90)
# Two wholes side by side; the left one has two parts, one of which has a subpart with its own subpart.
BOXES = [(0, 0, 60, 45), (0, 45, 60, 90), (5, 5, 30, 40), (35, 5, 55, 40), (8, 8, 25, 25), (10, 10, 20, 20)]
PARENTS = [-1, -1, 0, 0, 2, 4]
SCORES = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]


def box_mask(y0, x0, y1, x1, size=SIZE):
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def nested_forest() -> Forest:
    return Forest(encode_masks([box_mask(*box) for box in BOXES]), PARENTS, SIZE, scores=SCORES)


def coco(names, hierarchy=True) -> dict:
    """A COCO data set of nested forests; ``names`` maps image ids to file names."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "entity"}]}
    for image_id, name in names.items():
        content["images"].append({"id": image_id, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        content["annotations"] += nested_forest().to_coco(image_id, len(content["annotations"]) + 1)
    if not hierarchy:
        for annotation in content["annotations"]:
            del annotation["parent_id"]
    return content


def result(mask, image_id, score=0.5) -> dict:
    return {
        "image_id": image_id,
        "score": score,
        "category_id": 1,
        "segmentation": rle_to_json(encode_masks([mask])[0]),
    }


def write_photo(path: Path, size=SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(60, 200, size[0] * size[1] * 3).reshape(*size, 3)
    Image.fromarray(ramp.astype(np.uint8)).save(path)


def write_json(path: Path, content) -> Path:
    path.write_text(json.dumps(content))
    return path


def page_data(page: Path) -> dict:
    """Element id -> json, for every data element of a page."""
    elements = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page.read_text(), re.DOTALL)
    return {name: json.loads(text) for name, text in elements}

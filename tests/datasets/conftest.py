"""Fixtures for the scripts of `datasets/`: loading by name, json files and masks."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.structures.masks import decode_mask, encode_masks, rle_to_json

FOLDER = Path(__file__).resolve().parents[2] / "datasets"


@pytest.fixture
def load_script():
    """`load_script("prepare_coco")`: the script as a module; `datasets/` is not a package."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look up their module there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def write_json():
    """`write_json(path, value)`: write a json; missing folders are created."""

    def write(path: Path, value) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value), encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_labels():
    """`read_labels(path)`: the converted json, with decoded masks under "mask"."""

    def read(path: Path) -> dict:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        for annotation in value["annotations"]:
            annotation["mask"] = decode_mask(annotation["segmentation"])
        return value

    return read


@pytest.fixture
def rectangle():
    """`rectangle(size, y0, x0, y1, x1)`: (H, W) bool."""

    def make(size, y0, x0, y1, x1):
        mask = np.zeros(size, bool)
        mask[y0:y1, x0:x1] = True
        return mask

    return make


@pytest.fixture
def rle():
    """`rle(mask)`: json-ready RLE."""
    return lambda mask: rle_to_json(encode_masks([mask])[0])

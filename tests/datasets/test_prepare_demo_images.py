"""Photos of the demo: from the installed scikit-image, only files with a known licence."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "prepare_demo_images.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("prepare_demo_images", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look up their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def source(script, tmp_path, monkeypatch):
    """A stand-in for scikit-image's data folder with two photos, both listed."""
    folder = tmp_path / "data"
    folder.mkdir()
    photos = []
    for name, size in (("small.png", (40, 30)), ("large.jpg", (900, 300))):
        Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(folder / name)
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        photos.append(script.Photo(name, digest, f"what {name}", f"who made {name}", "CC0"))
    monkeypatch.setattr(script, "PHOTOS", tuple(photos))
    monkeypatch.setattr(script, "skimage_data_folder", lambda: folder)
    return folder


def test_small_photos_are_copied_and_large_ones_downsized(script, source, tmp_path, capsys):
    output = tmp_path / "out" / "images"
    assert script.main(["--output", str(output), "--max-side", "300"]) == 0
    assert (output / "small.png").read_bytes() == (source / "small.png").read_bytes()
    with Image.open(output / "large.jpg") as image:
        assert image.size == (300, 100)
    text = (output / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    for name in ("small.png", "large.jpg"):
        assert f"who made {name}" in text
    assert "downsized from 900 x 300 to 300 x 100" in text
    assert "2 photos" in capsys.readouterr().out


def test_no_limit_keeps_all_pixels(script, source, tmp_path):
    assert script.main(["--output", str(tmp_path / "out"), "--max-side", "0"]) == 0
    assert (tmp_path / "out" / "large.jpg").read_bytes() == (source / "large.jpg").read_bytes()


def test_another_file_of_the_same_name_is_skipped(script, source, tmp_path, capsys):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(source / "small.png")
    assert script.main(["--output", str(tmp_path / "out")]) == 3
    assert not (tmp_path / "out" / "small.png").exists()
    assert "small.png" not in (tmp_path / "out" / "ATTRIBUTION.txt").read_text(encoding="utf-8")
    assert "small.png" in capsys.readouterr().err


def test_no_photo_at_all_is_an_error(script, source, tmp_path):
    for file in source.iterdir():
        file.unlink()
    assert script.main(["--output", str(tmp_path / "out")]) == 2


def test_missing_scikit_image_is_reported_with_the_remedy(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    assert script.main(["--output", str(tmp_path / "out")]) == 2
    assert "pip install scikit-image" in capsys.readouterr().err


def test_the_installed_scikit_image_has_every_listed_photo(script, tmp_path):
    pytest.importorskip("skimage", reason="scikit-image is not installed")
    written, left_out = script.write_photos(script.skimage_data_folder(), tmp_path, 640)
    assert left_out == []
    assert len(written) == len(script.PHOTOS) >= 6
    for path in written:
        with Image.open(path) as image:
            assert max(image.size) <= 640

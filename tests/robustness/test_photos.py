"""Photos of every format and kind of file, whole and damaged: each is read or reported with a reason."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from helpers.harness import load_tool, run_forked, settings, violation, warm_up
from hypothesis import strategies as st
from PIL import Image

from sohes_d2.errors import ImageReadError
from sohes_d2.structures.images import IMAGE_SUFFIXES, image_size, read_image

FORMATS = ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "TGA", "DIB", "WEBP", "JPEG2000", "AVIF", "EPS", "PDF", "ICO"]
MODES = ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "HSV", "I;16", "I", "F"]
NAMES = [b"photo", b"new\nline", b"caf\xe9", b"\xf0\x9f\x93\xb7", b"a b", b"..x", b"-v", b"%s", b"x" * 200]
HEAD = b"\x89PNG\r\n\x1a\n"
# Other files that users have beside photos or with names of photos.
OTHER_FILES = [
    b"",
    b"\0" * 100,
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    b"%PDF-1.4\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"<!DOCTYPE html><html>",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    b"\xff\x0a\xfa\x7f\x01\x90\x08\x06",
    b"8BPS\0\1" + bytes(20),
    b"PK\3\4" + bytes(30),
    b"II*\0\x08\0\0\0" + b"\xff" * 40,
    b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 30,
    b"P6\n99999999 99999999\n255\n",
    b"P5 1 1 99999999999999999999\n\0",
    b"BM" + b"\xff" * 60,
    b"GIF89a\xff\xff\xff\xff\xf7\0\0",
]
KINDS = ["fifo", "folder", "dangling", "circle", "device", "unreadable", "to_folder"]


@st.composite
def pictures(draw) -> bytes:
    """A small picture in one of many formats and modes, some with several frames, a rotation or metadata."""
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    mode, kind = draw(st.sampled_from(MODES)), draw(st.sampled_from(FORMATS))
    if mode in ("I", "F", "I;16"):
        kinds = {"I": np.int32, "F": np.float32, "I;16": np.uint16}
        image = Image.fromarray(
            (rng.random((height, width)) * draw(st.sampled_from([1, 255, 60000]))).astype(kinds[mode])
        )
    else:
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        image = image.convert("RGB" if mode == "LAB" else mode)
    options = {}
    if draw(st.booleans()):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(0, 10))
        options["exif"] = exif
    if kind != "AVIF" and draw(st.integers(0, 4)) == 0:  # Pillow's encoder fails on frames of several sizes
        options.update(save_all=True, append_images=[image.rotate(90), image])
    if kind == "JPEG" and draw(st.booleans()):
        options["progressive"] = True
    file = io.BytesIO()
    try:
        image.save(file, kind, **options)
    except (OSError, ValueError, KeyError, TypeError, struct.error, SystemError, RuntimeError):  # unsupported mode
        file = io.BytesIO()
        image.convert("RGB").save(file, "PNG")
    return file.getvalue()


@st.composite
def damaged(draw) -> bytes:
    """A picture with bytes changed, removed, duplicated or inserted, or truncated."""
    data = bytearray(draw(pictures()))
    for _ in range(draw(st.integers(0, 4))):
        if not data:
            break
        # mostly in the header
        place = draw(st.one_of(st.integers(0, min(len(data), 64) - 1), st.integers(0, len(data) - 1)))
        action = draw(st.sampled_from(["set", "set", "ones", "cut", "drop", "double", "insert"]))
        if action == "set":
            data[place] = draw(st.integers(0, 255))
        elif action == "ones":
            data[place : place + 4] = b"\xff" * 4
        elif action == "cut":
            del data[place:]
        elif action == "drop":
            del data[place : place + draw(st.integers(1, 30))]
        elif action == "double":
            data[place:place] = data[place : place + draw(st.integers(1, 200))]
        else:
            data[place:place] = draw(st.binary(max_size=12))
    return bytes(data)


@st.composite
def huge_headers(draw) -> bytes:
    """A png with a valid header, but a wrong size."""
    header = struct.pack(">IIBBBBB", draw(st.integers(0, 2**31)), draw(st.integers(0, 2**31)), 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return HEAD + body


CONTENTS = st.one_of(
    damaged(), damaged(), pictures(), huge_headers(), st.sampled_from(OTHER_FILES), st.binary(max_size=64)
)


def place(folder: Path, name: bytes, suffix: str, kind: str, content: bytes) -> Path:
    """Create a file, folder, link or pipe with the name of a photo; returns its path."""
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), name + suffix.encode())))
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("nothing")
    elif kind == "circle":
        path.symlink_to(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "to_folder":
        path.symlink_to(folder)
    else:
        path.write_bytes(content)
        if kind == "unreadable":
            path.chmod(0)
    return path


def read(arguments: list[str]) -> int:
    """A minimal tool: code 0 if the file is read and has the size of its header, 2 if a reason is reported."""
    try:
        size = image_size(arguments[0])
        image = read_image(arguments[0])
    except ImageReadError as error:
        assert error.reason and "\n" not in error.reason and " at 0x" not in error.reason
        print(ascii(error.reason), file=sys.stderr)
        return 2
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
    assert image.shape[:2] == size
    return 0


@hypothesis.given(content=CONTENTS, kind=st.sampled_from(["file"] * 20 + KINDS), name=st.sampled_from(NAMES))
@settings(60)
def test_a_photo_is_read_or_reported_with_a_reason(content, kind, name):
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_forked(read, [place(Path(folder), name, ".jpg", kind, content)], seconds=10)
        assert violation(outcome) is None and outcome.code in (0, 2), (violation(outcome), outcome.stderr)


@pytest.fixture(scope="module")
def label():
    tool = load_tool("generate_pseudo_labels")
    with tempfile.TemporaryDirectory() as folder:
        good(Path(folder))
        assert warm_up(tool, command(folder, f"{folder}/labels.json")) == 0
    return tool


def good(folder: Path) -> None:
    pixels = np.full((24, 24, 3), 200, np.uint8)
    pixels[6:18, 6:18] = (30, 90, 160)
    Image.fromarray(pixels).save(folder / "good.png")


def command(images: str, output: str) -> list[str]:
    fast = ["EXPLORATION.FEATURES.NAME", "color_texture"]
    return ["--images", images, "--output", output, "--workers", "0", "--device", "cpu", *fast]


@hypothesis.given(
    files=st.lists(
        st.tuples(
            st.sampled_from(NAMES),
            st.sampled_from(sorted(IMAGE_SUFFIXES)),
            st.sampled_from(["file"] * 12 + KINDS),
            CONTENTS,
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda file: file[:2],
    )
)
@settings(8)
def test_every_file_that_looks_like_a_photo_is_labeled_or_listed(label, files):
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        good(photos)
        wanted = {"good.png"}
        for name, suffix, kind, content in files:
            if not name.startswith(b"."):
                path = place(photos, name, suffix, kind, content)
                if kind not in ("folder", "to_folder"):
                    wanted.add(path.name)
        output = Path(folder) / "out" / "labels.json"
        outcome = run_forked(label, command(str(photos), str(output)), seconds=60)
        assert violation(outcome) is None, (violation(outcome), outcome.stderr)
        labeled = {image["file_name"] for image in json.loads(output.read_text())["images"]}
        skipped = {
            record["file_name"]: record["reason"] for record in json.loads((output.parent / "errors.json").read_text())
        }
        assert labeled | set(skipped) == wanted and not labeled & set(skipped) and "good.png" in labeled
        assert all(skipped.values())
        assert outcome.code == (3 if skipped else 0)

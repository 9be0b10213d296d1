"""Reading images: Detectron2's orientation, deep and transparent files, errors with the reason."""

import io
import os
import pickle
import socket
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sohes_d2.errors import ImageReadError, InputError
from sohes_d2.structures.images import (
    file_fingerprint,
    image_size,
    read_image,
    reduced,
    set_max_image_pixels,
)

from detectron2.data.detection_utils import read_image as detectron2_read_image

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def check_against_detectron2(path):
    expected = detectron2_read_image(str(path), format="RGB")
    image = read_image(path)
    assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image, expected)
    assert image_size(path) == expected.shape[:2]
    return image


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif", "ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK"])
def test_ordinary_files_are_read_as_by_detectron2(tmp_path, suffix, mode):
    path = tmp_path / f"image.{suffix}"
    try:
        Image.fromarray(RGB).convert(mode).save(path)
    except (OSError, KeyError, ValueError) as error:
        pytest.skip(f"Pillow cannot write it: {error}")
    assert check_against_detectron2(path).shape == (5, 7, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, exif=exif)
    shape = check_against_detectron2(path).shape
    if suffix != "tif":  # Pillow rotates a TIFF itself, and Detectron2 again; we follow Detectron2
        assert shape[:2] == ((7, 5) if 5 <= orientation <= 8 else (5, 7))


def test_png_with_orientation_after_the_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    end = file.getvalue().index(b"IEND") - 4
    payload = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I4s", len(payload), b"eXIf") + payload + struct.pack(">I", zlib.crc32(b"eXIf" + payload))
    path = tmp_path / "late.png"
    path.write_bytes(file.getvalue()[:end] + chunk + file.getvalue()[end:])
    assert check_against_detectron2(path).shape == (7, 5, 3)


def test_size_comes_from_the_header_alone(tmp_path):
    path = tmp_path / "cut.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:200])
    assert image_size(path) == (64, 48)
    with pytest.raises(ImageReadError):
        read_image(path)


def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for name in ("deep.png", "deep.tif"):
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name), np.repeat([[[0], [1], [128], [255]]], 3, axis=2))


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.2, 200.0]], np.float32), [0, 100, 200]),
        (np.array([[np.nan, 0.0, 65535.0]], np.float32), [0, 0, 255]),
        (np.array([[-1.0, 0.0, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0, 1, 200]], np.int32), [0, 1, 200]),
        (np.array([[0, 65535, 257]], np.int32), [0, 255, 1]),
        (np.array([[1000, 1000000, 500500]], np.int32), [0, 255, 128]),
        (np.array([[7.0, 7.0, 7.0]], np.float32) * 1e6, [0, 0, 0]),
    ],
)
def test_32_bit_files(tmp_path, values, expected):
    path = tmp_path / "image.tif"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], expected)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0] = 200
    rgba[0, :, 3] = 0, 255, 51
    expected = [[[255, 255, 255], [200, 0, 0], [244, 204, 204]]]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgba.png"), expected)

    Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8), "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png")[0, :, 0], [255, 9])

    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), [[[255, 255, 255], [40, 50, 60]]])


def test_opaque_alpha_changes_nothing(tmp_path):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "opaque.png")
    check_against_detectron2(tmp_path / "opaque.png")


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "two.gif") == 10).all()


@pytest.mark.parametrize("size", [(1, 1), (50, 20000), (20000, 50)])
def test_extreme_sizes(tmp_path, size):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "image.png")
    assert read_image(tmp_path / "image.png").shape == (*size, 3)
    assert image_size(tmp_path / "image.png") == size


def test_bad_files_are_reported_with_reason_and_remedy(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    file = io.BytesIO()
    Image.fromarray(np.tile(RGB, (40, 40, 1))).save(file, "JPEG")
    cases = {
        "empty.jpg": (b"", "the file is empty"),
        "text.jpg": (b"no image at all", "not an image in a supported raster format"),
        "cut.jpg": (file.getvalue()[: len(file.getvalue()) // 2], "truncated"),
        "cut.png": (good[:-30], ""),
        "head.png": (good[:20], ""),
        "noise.png": (good[:40] + bytes(range(200)), ""),
        "zeros.tif": (b"II*\0" + bytes(100), ""),
    }
    for name, (data, reason) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageReadError, match=reason or None) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value) and caught.value.reason and " at 0x" not in caught.value.reason
        assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason
    with pytest.raises(ImageReadError, match="does not exist"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageReadError, match="a folder, not a file"):
        image_size(tmp_path / "folder.png")


def png_header(width, height):
    """A png with a wrong size in its header."""
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize("size", [(13000, 13000), (2, 64_000_001), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda self: pytest.fail("decoded"))
    for function in (read_image, image_size):
        with pytest.raises(ImageReadError, match=r"128000000 pixels \(INPUT.MAX_IMAGE_PIXELS\)"):
            function(tmp_path / "bomb.png")


def test_the_limit_can_be_set(tmp_path, monkeypatch):
    Image.fromarray(RGB).save(tmp_path / "good.png")
    (tmp_path / "large.png").write_bytes(png_header(20000, 20000))
    monkeypatch.setenv("SOHES_MAX_IMAGE_PIXELS", "34")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(ImageReadError, match="7 x 5 pixels are more than the limit of 34"):
        read_image(tmp_path / "good.png")
    set_max_image_pixels(35)
    assert read_image(tmp_path / "good.png").shape == (5, 7, 3)
    set_max_image_pixels(400_000_000)
    assert image_size(tmp_path / "large.png") == (20000, 20000)
    with pytest.raises(ValueError, match="at least 1"):
        set_max_image_pixels(0)
    monkeypatch.setenv("SOHES_MAX_IMAGE_PIXELS", "many")
    with pytest.raises(InputError, match="is 'many'"):
        read_image(tmp_path / "good.png")


def test_a_file_too_large_for_the_limit_is_not_read(tmp_path):
    with open(tmp_path / "sparse.webp", "wb") as file:
        file.write(b"RIFF\0\0\0\0WEBPVP8 ")
        file.truncate(2 << 30)
    with pytest.raises(ImageReadError, match="2147 MB, which is more than the limit"):
        read_image(tmp_path / "sparse.webp")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "a PostScript file"),
        (b"%PDF-1.7\n", "a PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\n<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a HEIC file, which is not supported; pip install pillow-heif"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL file, which is not supported; pip install pillow-jxl-plugin"),
        (b"\xff\x0a\xfa\x1f", "a JPEG XL file"),
        (b"8BPS\0\x01", "a Photoshop file"),
    ],
)
def test_other_kinds_of_files_are_reported(tmp_path, monkeypatch, data, reason):
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail("a program was started"))
    (tmp_path / "photo.jpg").write_bytes(data)
    for function in (read_image, image_size):
        with pytest.raises(ImageReadError) as caught:
            function(tmp_path / "photo.jpg")
        assert reason in caught.value.reason


def test_thumbnails_of_raw_files_are_not_read(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "raw.tif")
    (tmp_path / "raw.tif").rename(tmp_path / "raw.NEF")
    with pytest.raises(ImageReadError, match="a camera's raw file"):
        read_image(tmp_path / "raw.NEF")


def test_irregular_files_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    server = socket.socket(socket.AF_UNIX)
    server.bind("s.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "none")
    cases = {
        "fifo.jpg": "not a regular file",
        "device.jpg": "not a regular file",
        "s.jpg": "not a regular file",
        "circle.jpg": "symbolic links",
        "dangling.jpg": "a link to a file that does not exist",
        f"{'x' * 300}.jpg": "too long",
        "nul\0.jpg": "null byte",
    }
    for name, reason in cases.items():
        for function in (read_image, image_size):
            with pytest.raises(ImageReadError, match=reason):
                function(f"{tmp_path}/{name}")
    server.close()


def test_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    (tmp_path / "good.jpg").write_bytes(data)
    assert read_image(tmp_path / "good.jpg").shape == (5, 7, 3)
    last = data.rindex(b"\xff\xda")
    (tmp_path / "scans.jpg").write_bytes(data[:last] + data[last:-2] * 600 + data[-2:])
    with pytest.raises(ImageReadError, match="60[0-9] scans"):
        read_image(tmp_path / "scans.jpg")


def test_names_of_any_bytes(tmp_path):
    for name in (b"new\nline.png", b"caf\xe9.png", b"\xf0\x9f\x93\xb7.png"):
        path = os.fsdecode(os.path.join(os.fsencode(tmp_path), name))
        Image.fromarray(RGB).save(path)
        np.testing.assert_array_equal(read_image(path), RGB)


def test_fingerprint_detects_a_replaced_file(tmp_path):
    path = tmp_path / "photo.png"
    assert file_fingerprint(path) is None
    Image.fromarray(RGB).save(path)
    os.utime(path, ns=(1, 1))
    before = file_fingerprint(path)
    assert before == file_fingerprint(path) == (path.stat().st_size, 1)
    os.utime(path, ns=(2, 2))
    assert file_fingerprint(path) != before


@pytest.mark.parametrize("size", [(100, 200), (1, 5000), (5000, 1), (33, 31)])
@pytest.mark.parametrize("most", [50, 1000, 19_999])
def test_downsized_photos_are_below_the_limit(size, most):
    image = np.zeros((*size, 3), np.uint8)
    small = reduced(image, most)
    height, width = small.shape[:2]
    if size[0] * size[1] <= most:
        assert small is image
    elif min(size) > 1:
        assert 0.7 * most < height * width <= most
        assert height / width == pytest.approx(size[0] / size[1], rel=0.3)
    assert reduced(image, 0) is image


@pytest.mark.parametrize("size", [(1, 5000), (5000, 1)])
def test_very_thin_photos_are_below_the_limit(size):
    assert reduced(np.zeros((*size, 3), np.uint8), 1000).shape[:2] == ((1, 1000) if size[0] == 1 else (1000, 1))

"""Reading of photos: regular files in raster formats, of bounded size, as (H, W, 3) uint8 RGB.

Files are untrusted. Irregular files are never opened, only listed decoders are used, and the size in the header is
checked before pixels are decoded. The orientation is that of Detectron2's `read_image`.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Union

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from ..errors import REPLACE_IMAGE, ImageReadError, InputError
from .files import open_regular

PathLike = Union[str, "os.PathLike[str]"]

# Files with these suffixes count as photos: each is labeled, or listed with the reason why it was skipped. Those of the
# third line may need a Pillow plugin; those of the fourth are raw camera files, which are not supported.
IMAGE_SUFFIXES = frozenset(
    ".apng .bmp .dib .gif .j2k .jfif .jp2 .jpe .jpeg .jpf .jpg .jpx .mpo .pbm .pgm .png .pnm .ppm .tga .tif .tiff "
    ".webp "
    ".avif .heic .heif .hif .jxl "
    ".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split()
)

# Allowed decoders of Pillow. Others run programs (PostScript), open further files, or render vectors.
_RASTER_FORMATS = "AVIF BMP DIB GIF HEIF JPEG JPEG2000 JXL MPO PNG PPM TGA TIFF WEBP".split()

# More than the largest picture of most phones (108 megapixels), and 384 MB as RGB.
MAX_IMAGE_PIXELS = 128_000_000
MAX_IMAGE_PIXELS_KEY = "INPUT.MAX_IMAGE_PIXELS"
MAX_IMAGE_PIXELS_VARIABLE = "SOHES_MAX_IMAGE_PIXELS"  # for tools without a config
_BYTES_PER_PIXEL = 8  # uncompressed 16-bit RGBA; a larger file exceeds MAX_IMAGE_PIXELS
_HEADER_BYTES = 64 << 20  # room for metadata and colour profiles

# A progressive JPEG has about ten scans. Each can cover the whole picture, so a small file of thousands of scans would
# take hours to decode.
_MAX_JPEG_SCANS = 500

_REMEDIES = {errno.ENOENT: "Check the path, or the link.", errno.EACCES: "Check its access rights."}
_CONVERT = "convert it to JPEG or PNG"

# Known unsupported files: first bytes -> name and remedy.
_OTHER_KINDS = (
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript file", _CONVERT),
    (rb"%PDF-", "a PDF", _CONVERT),
    (rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg", "an SVG drawing", _CONVERT),
    (rb"(?i)\s*<(!doctype )?html", "a web page", "download the picture itself"),
    (rb"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself by `git lfs pull`"),
    (rb"....ftyp(hei[cxms]|he[vi][cxms]|mif1|msf1)", "a HEIC file", f"pip install pillow-heif, or {_CONVERT}"),
    (rb"....ftypavi[fs]", "an AVIF file", f"install Pillow 11.3 or later, or {_CONVERT}"),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL file", f"pip install pillow-jxl-plugin, or {_CONVERT}"),
    (rb"....ftypcrx |FUJIFILMCCD-RAW|IIRO|IIU\x00", "a camera's raw file", f"{_CONVERT} by a raw converter"),
    (rb"8BPS", "a Photoshop file", _CONVERT),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
)
_PLUGINS = ((rb"....ftyp", "pillow_heif"), (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "pillow_jxl"))
_RAW_SUFFIXES = frozenset(".arw .cr2 .cr3 .dng .nef .orf .raf .rw2".split())

_EXIF_ORIENTATION = 0x0112
_ORIENTATION_TO_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA_CHUNKS = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")


def set_max_image_pixels(pixels: int) -> None:
    """Set the largest number of pixels (height times width) per image, for this process and its children.

    Raises:
        ValueError: not at least 1.
    """
    if pixels < 1:
        raise ValueError(f"{MAX_IMAGE_PIXELS_KEY} must be at least 1, got {pixels}")
    os.environ[MAX_IMAGE_PIXELS_VARIABLE] = str(pixels)


def max_image_pixels() -> int:
    """The current limit: that of `set_max_image_pixels`, the environment variable, or MAX_IMAGE_PIXELS.

    Raises:
        InputError: the environment variable is not a positive integer.
    """
    text = os.environ.get(MAX_IMAGE_PIXELS_VARIABLE) or str(MAX_IMAGE_PIXELS)
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"the environment variable {MAX_IMAGE_PIXELS_VARIABLE} is {text!r}; give a number of pixels")
    return int(text)


def read_image(path: PathLike) -> np.ndarray:
    """Read a file as 8-bit RGB.

    The orientation is that of `detectron2.data.detection_utils.read_image` (EXIF orientation applied). The values are
    the same for ordinary 8-bit files. They differ where Pillow's `convert("RGB")` loses content: deeper integers and
    floats are scaled to 8 bits (Pillow clips them to white), and transparent pixels are composited over white, as in a
    viewer (Pillow shows the hidden colour). Only the first frame of an animation is read.

    Args:
        path: an image file.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable.

    Raises:
        ImageReadError: the file is missing, not regular, empty, truncated, not in a supported raster format, or has
            more pixels than `max_image_pixels`.
    """
    with open_image(path) as image:
        return _upright(image)


def as_rgb(image: Any) -> np.ndarray:
    """Convert any image to 8-bit RGB.

    Args:
        image: the path of a file, see `read_image`; a Pillow image of any mode (EXIF orientation is applied); an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a torch tensor on any device, with channels first, (3, H, W),
            or last. Grey becomes RGB, transparent pixels are composited over white. Values are 0..255 as uint8, 0..1
            as floats or bools; other types and ranges are scaled like files of that type.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous. An array of this form is returned without a copy.

    Raises:
        ImageReadError: a file that cannot be read.
        ValueError: not an image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _upright(image)
    is_tensor = hasattr(image, "detach")  # torch itself is not needed here
    if is_tensor:
        image = image.detach().cpu()
        image = (image if str(image.dtype) != "torch.bfloat16" else image.float()).numpy()
    if not isinstance(image, np.ndarray):
        raise ValueError(f"an image must be a path, a Pillow image, an array or a tensor, got {type(image).__name__}")
    values = _channels_last(image, first=is_tensor)
    if values.dtype == bool:
        values = values.astype(np.uint8) * 255
    elif values.dtype != np.uint8:
        values = _scale_to_8_bits(values, values.dtype == np.uint16)
    if values.shape[2] == 1:
        values = np.repeat(values, 3, axis=2)
    elif values.shape[2] == 4:
        values = _to_rgb(Image.fromarray(np.ascontiguousarray(values), "RGBA"))
    return np.ascontiguousarray(values)


def _channels_last(image: np.ndarray, first: bool) -> np.ndarray:
    """Convert to (H, W, C); if both the first and the last axis could be channels, ``first`` decides."""
    shape = image.shape
    if image.ndim == 2:
        image = image[:, :, None]
    elif image.ndim == 3:
        ends = {True: shape[0] in (1, 3, 4), False: shape[2] in (1, 3, 4)}
        if not any(ends.values()):
            raise ValueError(f"an image must have 1, 3 or 4 channels, first or last; got shape {shape}")
        if ends[True] and (first or not ends[False]):
            image = image.transpose(1, 2, 0)
    if image.ndim != 3 or not image.size or image.dtype.kind not in "biuf":
        raise ValueError(f"an image must be (H, W), (H, W, C) or (C, H, W) numbers; got shape {shape}, {image.dtype}")
    return image


def image_size(path: PathLike) -> tuple[int, int]:
    """(H, W) of `read_image(path)`, from the file's header, without decoding pixels.

    Raises:
        ImageReadError: the header cannot be read. (The pixels are not checked.)
    """
    with open_image(path) as image:
        width, height = image.size
        if isinstance(image, PngImageFile) and not _png_metadata_after_pixels(image.fp):
            # PngImageFile.getexif() decodes the pixels to find metadata after them; there is none here.
            orientation = _orientation(image, Image.Image.getexif)
        else:
            orientation = _orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def reduced(image: np.ndarray, max_pixels: int) -> np.ndarray:
    """Downsize an (H, W, 3) image to at most ``max_pixels`` by area interpolation; 0: no limit."""
    import cv2  # imported here, because readers of label files do not need it

    height, width = image.shape[:2]
    if not max_pixels or height * width <= max_pixels:
        return image
    shrink = np.sqrt(max_pixels / (height * width))
    height, width = max(1, int(height * shrink)), max(1, int(width * shrink))
    # a side of 1 cannot shrink further, so the other one must
    size = (max(1, min(width, max_pixels // height)), max(1, min(height, max_pixels // width)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def file_fingerprint(path: PathLike) -> tuple[int, int] | None:
    """Size in bytes and modification time in nanoseconds; None if the file does not exist.

    Two fingerprints of a path differ if the file was replaced or changed in between. The file is not read.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@contextmanager
def open_image(path: PathLike) -> Iterator[Image.Image]:
    """Open a file with Pillow in its native mode, for label maps and headers; for photos use `read_image`.

    Raises:
        ImageReadError: see `read_image`; also for errors of the file inside the ``with`` block.
    """
    try:
        with open_regular(path) as file, warnings.catch_warnings():
            _check_bytes(path, os.fstat(file.fileno()).st_size)
            # Pillow warns about damaged metadata and sizes near its own limit, without naming the file
            warnings.simplefilter("ignore")
            head = file.read(512)
            file.seek(0)
            with _identified(path, file, head) as image:
                width, height = image.size
                if width * height > max_image_pixels():
                    raise _too_large(path, f"{width} x {height} pixels are ")
                if image.format in ("JPEG", "MPO"):
                    _check_scans(path, file)
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:  # a frame larger than the size in the header
        raise _too_large(path) from error
    except MemoryError as error:
        raise ImageReadError(path, "not enough memory to decode it", "Resize the image.") from error
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, REPLACE_IMAGE)
        raise ImageReadError(path, error.strerror or str(error), remedy) from error
    except Exception as error:  # decoders may raise anything on damaged bytes
        raise ImageReadError(path, f"damaged file ({type(error).__name__}: {error})") from error


def _check_bytes(path: PathLike, size: int) -> None:
    if size == 0:
        raise ImageReadError(path, "the file is empty")
    if size > max_image_pixels() * _BYTES_PER_PIXEL + _HEADER_BYTES:
        raise _too_large(path, f"{size / 1e6:.0f} MB, which is ")


def _identified(path: PathLike, file: BinaryIO, head: bytes) -> Image.Image:
    # most raw formats are TIFF files, from which Pillow would read a thumbnail at best
    if os.path.splitext(os.fspath(path))[1].lower() in _RAW_SUFFIXES and head[:4] in (b"II*\0", b"MM\0*"):
        raise _other_kind(path, "a camera's raw file", f"{_CONVERT} by a raw converter")
    _register_plugins(head)
    Image.init()
    if Image.MAX_IMAGE_PIXELS is not None:  # raise Pillow's own limit to ours
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_image_pixels())
    try:
        return Image.open(file, formats=[name for name in _RASTER_FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        for pattern, kind, remedy in _OTHER_KINDS:
            if re.match(pattern, head, re.DOTALL):
                raise _other_kind(path, kind, remedy) from error
        raise ImageReadError(path, "not an image in a supported raster format, or its header is damaged") from error
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error


def _other_kind(path: PathLike, kind: str, remedy: str) -> ImageReadError:
    # the reason includes the remedy, because lists of skipped photos contain only the reason
    return ImageReadError(path, f"{kind}, which is not supported; {remedy}", "Or remove it from the list.")


def _register_plugins(head: bytes) -> None:
    """Register installed plugins for formats that Pillow does not support itself."""
    for pattern, plugin in _PLUGINS:
        if re.match(pattern, head, re.DOTALL):
            with suppress(ImportError):
                module = importlib.import_module(plugin)
                if hasattr(module, "register_heif_opener"):
                    module.register_heif_opener()


def _too_large(path: PathLike, what: str = "") -> ImageReadError:
    return ImageReadError(
        path,
        f"{what}more than the limit of {max_image_pixels()} pixels ({MAX_IMAGE_PIXELS_KEY})",
        f"Resize the image, or raise {MAX_IMAGE_PIXELS_KEY}, or the environment variable {MAX_IMAGE_PIXELS_VARIABLE}.",
    )


def _check_scans(path: PathLike, file: BinaryIO) -> None:
    position = file.tell()
    file.seek(0)
    scans, last = 0, b""
    while block := file.read(1 << 20):
        # within compressed data, 0xff is always followed by 0x00 or a restart marker
        scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    file.seek(position)
    if scans > _MAX_JPEG_SCANS:
        raise ImageReadError(path, f"{scans} scans, where a progressive JPEG has about ten", "Save it again.")


def _upright(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB with the EXIF orientation applied."""
    method = _ORIENTATION_TO_TRANSPOSE.get(_orientation(image) or 1)
    return _to_rgb(image if method is None else image.transpose(method))


def _orientation(image: Image.Image, getexif=None) -> int | None:
    """The EXIF orientation 1..8, or None. Unreadable EXIF is ignored, as Detectron2 does."""
    try:
        return (image.getexif() if getexif is None else getexif(image)).get(_EXIF_ORIENTATION)
    except Exception:  # malformed EXIF may raise anything; the pixels may still be valid
        return None


def _png_metadata_after_pixels(file: Any) -> bool:
    """Whether a PNG has metadata chunks after its pixel data. The file position is kept."""
    position = file.tell()
    file.seek(len(_PNG_SIGNATURE))
    pixels_seen = found = False
    kind = b""
    while not found and kind != b"IEND" and len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        found = pixels_seen and kind in _PNG_METADATA_CHUNKS
        pixels_seen |= kind == b"IDAT"
        file.seek(length + 4, os.SEEK_CUR)
    file.seek(position)
    return found


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow image of any mode -> (H, W, 3) uint8 RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow before 11.3 opens 16-bit PNG files as mode "I"
        is_16_bit = image.mode.startswith("I;16") or image.format == "PNG"
        grey = _scale_to_8_bits(np.asarray(image), is_16_bit)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.array(image.convert("RGB"))


def _scale_to_8_bits(values: np.ndarray, is_16_bit: bool) -> np.ndarray:
    """(H, W) integers or floats -> (H, W) uint8.

    16-bit files are scaled by their full range. The range of 32-bit files is unknown: the smallest usual one that
    contains the values is used (0..1 for floats, 0..255, 0..65535), otherwise the values are stretched from minimum to
    maximum.
    """
    usual_tops = [255.0, 65535.0] if values.dtype.kind in "iu" else [1.0, 255.0, 65535.0]
    finite = values if values.dtype.kind in "iu" else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if is_16_bit:
        low, high = 0.0, 65535.0
    elif low >= 0:
        low, high = next(((0.0, top) for top in usual_tops if high <= top), (low, high))
    scale = 255.0 / (high - low) if high > low else 0.0
    scaled = np.empty(values.shape, np.uint8)
    for into, row in zip(scaled, finite):  # row by row, since float64 of a large image needs much memory
        into[:] = np.clip(np.rint((row.astype(np.float64) - low) * scale), 0, 255)
    return scaled

"""Reading photos: any file that Pillow opens becomes (H, W, 3) uint8 RGB in the frame of Detectron2's `read_image`."""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from typing import Any, BinaryIO, Union
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

PathLike = Union[str, "os.PathLike[str]"]

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .dib .gif .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .tga .webp".split()
)

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


class ImageReadError(ValueError):
    """A file that cannot be read as an image.

    Attributes:
        path: the file.
        reason: what is wrong with it (no memory addresses or times, so that it can be written to label files).
        remedy: what the user can do.
    """

    def __init__(self, path: PathLike, reason: str, remedy: str = "Replace the file or take it off the list."):
        self.path = os.fspath(path)
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"cannot read the image {self.path!r}: {reason}. {remedy}")

    def __reduce__(self):
        return (type(self), (self.path, self.reason, self.remedy))


def read_image(path: PathLike) -> np.ndarray:
    """Read a file as 8-bit RGB.

    The pixels lie in the frame that `detectron2.data.detection_utils.read_image` gives (EXIF orientation applied).
    For ordinary 8-bit files the values are the same as well. They differ on purpose where Pillow's `convert("RGB")`
    loses the picture: deeper integers and floats are scaled to 8 bits (Pillow clips them to white), and transparent
    pixels are laid over white, as a viewer shows them (Pillow uncovers whatever colour is hidden below them). Of an
    animation, the first frame is taken.

    Args:
        path: an image file.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous and writable.

    Raises:
        ImageReadError: the file is missing, empty, truncated, not an image, or larger than Pillow's limit against
            decompression bombs.
    """
    with _opened(path) as (image, _):
        method = _ORIENTATION_TO_TRANSPOSE.get(_orientation(image))
        if method is not None:
            image = image.transpose(method)
        return _to_rgb(image)


def as_rgb(image: Any) -> np.ndarray:
    """Any image as 8-bit RGB.

    Args:
        image: the path of a file, see `read_image`; a Pillow image of any mode (EXIF orientation is applied); an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a torch tensor on any device, where the channels come first,
            (3, H, W), or last. Grey becomes RGB, transparent pixels are laid over white. Values are 0..255 as uint8,
            0..1 as floats or bools; other types and ranges are scaled as those of files of that kind.

    Returns:
        (H, W, 3) uint8 RGB, C-contiguous. An array that is one already is returned as it is.

    Raises:
        ImageReadError: a file that cannot be read.
        ValueError: something that is no image.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        method = _ORIENTATION_TO_TRANSPOSE.get(_orientation(image))
        return _to_rgb(image if method is None else image.transpose(method))
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
    """(H, W, C) of an array; where both ends could be the channels, ``first`` tells which are."""
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
    """The (H, W) that `read_image(path)` will have, from the file's header, without decoding pixels.

    Raises:
        ImageReadError: the header cannot be read. (A good header says nothing about the pixels behind it.)
    """
    with _opened(path) as (image, file):
        width, height = image.size
        if image.format == "PNG" and not _png_metadata_after_pixels(file):
            # PngImageFile.getexif() decodes the pixels in search of metadata that may follow them; here none does.
            orientation = _orientation(image, Image.Image.getexif)
        else:
            orientation = _orientation(image)
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


@contextmanager
def _opened(path: PathLike) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open a file with Pillow and turn everything that can go wrong with it into ImageReadError."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ImageReadError(path, "the file is empty")
            with Image.open(file) as image:
                yield image, file
    except ImageReadError:
        raise
    except FileNotFoundError as error:
        raise ImageReadError(path, "the file does not exist", "Check the path, or a broken link.") from error
    except PermissionError as error:
        raise ImageReadError(path, "no permission to read the file", "Check its access rights.") from error
    except UnidentifiedImageError as error:
        raise ImageReadError(path, "not an image in a format that Pillow knows") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageReadError(
            path, f"more than {limit} pixels, Pillow's limit against decompression bombs", "Resize the image."
        ) from error
    except MemoryError as error:
        raise ImageReadError(path, "not enough memory to decode it", "Resize the image.") from error
    except OSError as error:
        raise ImageReadError(path, error.strerror or str(error)) from error
    except (
        Exception
    ) as error:  # decoders raise nearly anything on damaged bytes: SyntaxError, struct.error, KeyError, ...
        raise ImageReadError(path, f"damaged file ({type(error).__name__}: {error})") from error


def _orientation(image: Image.Image, getexif=None) -> int | None:
    """The EXIF orientation 1..8, or None. Unreadable EXIF is ignored, as Detectron2 does."""
    try:
        exif = image.getexif() if getexif is None else getexif(image)
        return exif.get(_EXIF_ORIENTATION)
    except Exception:  # malformed EXIF raises nearly anything; the pixels may still be good
        return None


def _png_metadata_after_pixels(file: BinaryIO) -> bool:
    """Whether a PNG has metadata chunks behind its pixel data. The file position is kept."""
    position = file.tell()
    try:
        file.seek(len(_PNG_SIGNATURE))
        pixels_seen = False
        while True:
            head = file.read(8)
            if len(head) < 8:
                return False
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                pixels_seen = True
            elif pixels_seen and kind in _PNG_METADATA_CHUNKS:
                return True
            elif kind == b"IEND":
                return False
            file.seek(length + 4, os.SEEK_CUR)
    finally:
        file.seek(position)


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

    16-bit files are scaled by their full range. 32-bit files do not tell their range: the smallest usual one that
    holds the values is taken (0..1 for floats, 0..255, 0..65535), otherwise the values are stretched from the least
    to the greatest.
    """
    usual_tops = [255.0, 65535.0] if values.dtype.kind in "iu" else [1.0, 255.0, 65535.0]
    values = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if is_16_bit:
        low, high = 0.0, 65535.0
    elif low >= 0:
        low, high = next(((0.0, top) for top in usual_tops if high <= top), (low, high))
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.clip(np.rint((values - low) * scale), 0, 255).astype(np.uint8)

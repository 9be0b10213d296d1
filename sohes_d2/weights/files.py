"""Safe reading of weights files: safetensors, torch checkpoints and pickles of model zoos, without running code."""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..errors import WeightsError
from ..structures.files import open_regular

_ZIP = b"PK\x03\x04"
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # pickled magic number of files before torch 1.6
_MAX_DEPTH = 32  # nested containers; an optimizer state has about 8 levels


def read_weights(path: str) -> Any:
    """Read a weights file on the CPU without running any code from it.

    Args:
        path: safetensors, a torch checkpoint, or a pickle of Detectron2's or Mask2Former's model zoo; detected by
            content, so the suffix does not matter.

    Returns:
        The content of the file: a mapping of names to tensors, possibly nested in the dict of a training checkpoint.
        Numeric arrays in dicts are converted to tensors. Every tensor is dense and within the bytes of the file.

    Raises:
        WeightsError: not found, not a weights file, damaged, nested too deeply, or not readable without running code.
    """
    path = os.path.expanduser(path)
    size, head = _beginning(path)
    with _damaged(path), open(path, "rb") as file:
        content = _read(file, size, head)
        _check_content(content, (), set())
    return content


def _read(file: BinaryIO, size: int, head: bytes) -> Any:
    if head[8:9] == b"{":
        from safetensors.torch import load_file

        return load_file(file.name, device="cpu")
    if head[:4] == _ZIP:
        _check_zip(file, size)
    if head[:4] == _ZIP or head == _TORCH_LEGACY:
        # Training checkpoints of DINO and timm store their command line in a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            # given a path, torch would check the suffix
            return torch.load(file, map_location="cpu", weights_only=True)
    if head[:1] == b"\x80" or file.name.endswith(".pkl"):
        return _ArrayUnpickler(file, encoding="latin1").load()
    raise WeightsError(
        f"Weights {file.name!r}: not a torch or safetensors file ({size} bytes, begins with {head!r}), perhaps a saved "
        "web page, a Git LFS pointer or a broken download: delete it and download the file itself."
    )


def safetensors_metadata(path: str) -> dict[str, str]:
    """Read the metadata of a safetensors file, without its tensors.

    Raises:
        WeightsError: no such file, or not a readable safetensors file.
    """
    from safetensors import safe_open

    path = os.path.expanduser(path)
    _beginning(path)
    with _damaged(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _beginning(path: str) -> tuple[int, bytes]:
    """Size in bytes, and the first bytes."""
    try:
        with open_regular(path) as file:
            return os.fstat(file.fileno()).st_size, file.read(len(_TORCH_LEGACY))
    except OSError as error:
        raise WeightsError(
            f"Weights {path!r}: {error.strerror}. Pass a .pth, .pt or .safetensors file, a URL, or 'hub:NAME' for the "
            "weights of a timm model."
        ) from error


@contextmanager
def _damaged(path: str) -> Iterator[None]:
    """Convert any exception of a reader to a WeightsError, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except WeightsError:
        raise
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if found or isinstance(error, _RefusedError):
            raise WeightsError(
                f"Weights {path!r}: loading this file would run code stored in it (it asks for "
                f"{found.group(1) if found else error}), so it is refused. If you trust its author, convert it once "
                "elsewhere: torch.load(path, weights_only=False) or pickle.load, keep the tensors, and save them with "
                "safetensors.torch.save_file; then pass the .safetensors file."
            ) from error
        line = shorten((str(error).splitlines() or [type(error).__name__])[0], 200)
        raise WeightsError(
            f"Weights {path!r}: not a readable safetensors file, torch file or pickle: truncated or damaged ({line}). "
            "Download it again."
        ) from error


def _check_zip(file: BinaryIO, size: int) -> None:
    """Verify checksums, and reject a file that unpacks to more than its size, which torch.save never writes."""
    with zipfile.ZipFile(file) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > size:
            raise ValueError(f"{size} bytes that would unpack to {unpacked}")
        damaged = archive.testzip()  # torch does not check the CRC32 of the records
    if damaged is not None:
        raise ValueError(f"the CRC32 of {damaged} in it does not match")
    file.seek(0)


def _check_content(value: Any, above: tuple[int, ...], sound: set[int]) -> None:
    """Check containers and tensors, and convert numeric arrays in dicts to tensors, in place.

    Args:
        value: content of a file, or a part of it.
        above: ids of the enclosing containers.
        sound: ids of containers already checked.

    Raises:
        ValueError: containers that contain themselves or are nested too deeply, or a tensor that is not dense or is
            larger than its bytes.
    """
    if isinstance(value, Tensor):
        _check_tensor(value)
    if not isinstance(value, (dict, list, tuple)) or id(value) in sound:
        return
    if id(value) in above:
        raise ValueError("a container in it contains itself")
    if len(above) >= _MAX_DEPTH:
        raise ValueError(f"its content is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        value.update({key: _as_tensor(v) for key, v in value.items() if isinstance(v, np.ndarray)})
    for inner in value.values() if isinstance(value, dict) else value:
        _check_content(inner, (*above, id(value)), sound)
    sound.add(id(value))


def _check_tensor(value: Tensor) -> None:
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise ValueError(f"a tensor in it is {value.layout} {value.dtype} on {value.device}, not plain numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError(f"a tensor of {tuple(value.shape)} in it is larger than its bytes")


def _as_tensor(array: np.ndarray) -> Any:
    """Convert a numeric array to a tensor; other arrays (text, objects) are returned unchanged."""
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:  # not numeric, or a long double
        return array
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


class _RefusedError(pickle.UnpicklingError):
    """A pickle that needs more than arrays and containers."""


def _storage_from_bytes(content: bytes) -> Any:
    """Read the storage of a pickled tensor, a nested torch file that torch would load without restrictions."""
    if content[:4] == _ZIP:
        raise _RefusedError("a compressed storage")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Replace `_codecs.encode`, with which pickles of protocol 2 restore bytes. Other codecs could expand the data."""
    if encoding not in ("latin1", "latin-1"):
        raise _RefusedError(f"the codec {encoding}")
    return codecs.encode(text, "latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays, torch tensors, numbers, strings and containers; refuses everything else."""

    # numpy has moved these helpers between modules, so files use several names.
    _ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    _HELPERS: tuple[Any, ...] = (
        np.zeros(1).__reduce__()[0],  # _reconstruct
        np.float32(0).__reduce__()[0],  # scalar
        np.zeros(1).__reduce_ex__(5)[0],  # _frombuffer
    )
    _ARRAY_HELPERS = {helper.__name__: helper for helper in _HELPERS}
    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): _encode,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch.storage", "_load_from_bytes"): _storage_from_bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if module in self._ARRAY_MODULES and name in self._ARRAY_HELPERS:
            return self._ARRAY_HELPERS[name]
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise _RefusedError(f"{module}.{name}") from None

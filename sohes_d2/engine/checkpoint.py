"""Checkpoints: read without running code from them, written whole or not at all."""

from __future__ import annotations

import codecs
import collections
import io
import os
import pickle
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor

from ..labels.writer import atomic_writer
from ..model_zoo import local_path
from ..weights import WeightsError, read_checkpoint


class CheckpointError(RuntimeError):
    """A checkpoint that is not there or cannot be used; the message names it and says what to do."""


class SOHESCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, but safe against hostile files and against kills.

    Reads ``.safetensors``, torch files (``.pth``, ``.pt``, ``.bin``; also ``.pyth`` of pycls), and ``.pkl`` of the
    model zoos of Detectron2 and Mask2Former. What does not fit the model (missing, unexpected, another shape) is logged
    and left out, as Detectron2 does.

    A checkpoint is written under a temporary name first, and ``last_checkpoint`` after it: a kill at any moment leaves
    the previous one usable.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with the model, all checkpointables and ``kwargs``, and make it the last checkpoint."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content.update((key, item.state_dict()) for key, item in self.checkpointables.items())
        content.update(kwargs)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_writer(path) as file:
            torch.save(content, file)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file of the folder the one to resume from."""
        with atomic_writer(os.path.join(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load ``path``, a file, ``shipped:NAME`` or an address that Detectron2 knows ("" loads nothing).

        Returns:
            What the file has beside the model and the checkpointables.

        Raises:
            CheckpointError: no such file, or one without a model.
            WeightsError: damaged, or it could be read only by running code from it.
        """
        path = local_path(path or "")
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise CheckpointError(
                f"checkpoint {path!r} does not exist; give MODEL.WEIGHTS another file, or train without --resume if "
                f"{os.path.join(self.save_dir, 'last_checkpoint')!r} names it"
            )
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = list(checkpoint["model"])[:3]  # loading empties it
        incompatible = super()._load_model(checkpoint)
        wanted = {name for name, _ in self.model.named_parameters()}
        if wanted and wanted <= set(incompatible.missing_keys):
            raise CheckpointError(
                f"nothing in the checkpoint is of this model (it has {', '.join(found)}); use the config "
                "that it was trained with, or, for teacher and student, export one of them by tools/export_model.py"
            )
        return incompatible

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            content = read_pickle(filename)
            if "model" not in content:  # of Caffe2 and Detectron1
                blobs = content.get("blobs", content)
                model = {key: value for key, value in blobs.items() if not key.endswith("_momentum")}
                content = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
        else:
            content = read_checkpoint(filename)
            if isinstance(content, dict) and "model_state" in content:  # of pycls
                content = {"model": content["model_state"], "matching_heuristics": True}
            elif isinstance(content, dict) and "model" not in content:
                content = {"model": content.get("state_dict", content)}
        content = _with_model(content, filename)
        # Detectron2's way to say that names are those of another code base: FILE?matching_heuristics=True
        parsed = getattr(self, "_parsed_url_during_load", None)
        if parsed is not None and parse_qs(parsed.query).get("matching_heuristics") == ["True"]:
            content["matching_heuristics"] = True
        return content


def _with_model(content: Any, filename: str) -> dict[str, Any]:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(value, (Tensor, np.ndarray)) for value in model.values()):
        found = list(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"checkpoint {filename!r} has no model, that is no dict of names to tensors, at the top or under 'model' "
            f"(found: {found})"
        )
    return content


def read_pickle(path: str) -> dict[str, Any]:
    """The content of a ``.pkl`` of a model zoo: arrays or tensors in plain containers.

    Args:
        path: pickled by Python 2 or 3, without compression.

    Raises:
        WeightsError: anything else is in it, or it is damaged or no pickle.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except _RefusedError as error:
        raise WeightsError(
            f"Weights {path!r}: loading this file would run code stored in it (it asks for {error}), so it is refused. "
            "If you trust its author, convert it once elsewhere: pickle.load, then torch.save({'model': names to "
            "tensors}, 'FILE.pth')."
        ) from error
    except Exception as error:  # damaged pickles raise nearly any type, IndexError and KeyError among them
        raise WeightsError(
            f"Weights {path!r}: no pickle, truncated or damaged ({error}). Download it again."
        ) from error
    if not isinstance(content, dict):
        raise WeightsError(f"Weights {path!r}: holds a {type(content).__name__}, not a dict of names to arrays.")
    return content


class _RefusedError(pickle.UnpicklingError):
    """A pickle that asks for more than arrays and containers."""


def _storage_from_bytes(content: bytes) -> Any:
    """Pickled tensors carry their storage as a torch file of its own; torch would read it without restrictions."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays, torch tensors, numbers, strings and containers; refuses all else."""

    # The helpers' modules have moved with numpy's versions, so files name them in several ways.
    _ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    _ARRAY_HELPERS = {
        helper.__name__: helper
        for helper in (
            np.zeros(1).__reduce__()[0],  # _reconstruct
            np.float32(0).__reduce__()[0],  # scalar
            np.zeros(1).__reduce_ex__(5)[0],  # _frombuffer
        )
    }
    _ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
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

"""Checkpoints: safe reading without running code from them, and atomic writing."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

import torch
from torch import Tensor, nn

from detectron2.checkpoint import DetectionCheckpointer

from ..errors import WeightsError
from ..structures.files import atomic_writer, write_text
from . import local_path, read_weights
from .layouts import current_names

LAST_CHECKPOINT = "last_checkpoint"  # names the file to resume from


def has_checkpoint(folder: str) -> bool:
    """Whether the folder has a checkpoint to resume from."""
    return os.path.isfile(os.path.join(folder, LAST_CHECKPOINT))


class SOHESCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, made safe against malicious files and interrupted writes.

    Reads ``.safetensors``, torch files (``.pth``, ``.pt``, ``.bin``; also ``.pyth`` of pycls), and ``.pkl`` of the
    model zoos of Detectron2 and Mask2Former. Tensors that do not match the model (missing, unexpected, another shape)
    are logged and skipped, as in Detectron2.

    A checkpoint is written atomically, and ``last_checkpoint`` after it, so that a kill leaves the previous one usable.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        max_unmatched: float = 1.0,
        parts_may_lack: bool = False,
        **options: Any,
    ):
        """
        Args:
            model: the model to save and load.
            save_dir: folder of the checkpoints; "" to save none.
            max_unmatched: largest share of the model's tensors that may be missing or have another shape.
            parts_may_lack: ignore top-level modules (names up to the first dot) of which the file has no tensor, to
                start training from a backbone alone.
            options: options of `DetectionCheckpointer`, and additional checkpointables.
        """
        super().__init__(model, save_dir, **options)
        self._max_unmatched = max_unmatched
        self._parts_may_lack = parts_may_lack
        self._loading = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth with the model, all checkpointables and ``kwargs``, and set it as the last checkpoint."""
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
        """Set the checkpoint file to resume from."""
        write_text(os.path.join(self.save_dir, LAST_CHECKPOINT), last_filename_basename)

    def get_checkpoint_file(self) -> str:
        """Path named in ``last_checkpoint``; "" if there is none. Invalid bytes give a path that does not exist."""
        try:
            with open(os.path.join(self.save_dir, LAST_CHECKPOINT), encoding="utf-8", errors="replace") as file:
                return os.path.join(self.save_dir, file.read().strip())
        except OSError:
            return ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint of the folder if ``resume`` is set and one exists, else the model of ``path``.

        If the last checkpoint is damaged or missing, the newest readable one becomes the last checkpoint; a warning
        names both.

        Raises:
            WeightsError: see `load`; if no checkpoint can be read, the error of the last one.
        """
        if not resume or not self.has_checkpoint():
            return self.load(path, checkpointables=[])
        last = self.get_checkpoint_file()
        try:
            return self.load(last)
        except WeightsError as error:
            if _is_sound(last):
                raise  # an intact file of another model
            for other in self._periodic_checkpoints():
                with suppress(WeightsError):
                    extra = self.load(other)
                    self.logger.warning("Training continues from %s, because: %s", other, error)
                    if self.save_to_disk:
                        self.tag_last_checkpoint(os.path.basename(other))
                    return extra
            raise

    def _periodic_checkpoints(self) -> list[str]:
        """Final and periodic checkpoints of the folder, the newest first."""
        names = [os.path.basename(path) for path in self.get_all_checkpoint_files()]
        numbered = sorted((name for name in names if re.fullmatch(r"model_\d{7}\.pth", name)), reverse=True)
        final = [name for name in names if name == "model_final.pth"]
        return [os.path.join(self.save_dir, name) for name in final + numbered]

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load ``path``, a file, ``shipped:NAME`` or a URL that Detectron2 supports ("" loads nothing).

        Returns:
            Entries of the file other than the model and the checkpointables.

        Raises:
            WeightsError: a file that does not exist, is damaged, has no model or another one, or could only be read by
                running code from it.
        """
        path = local_path(path or "")
        if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
            raise WeightsError(
                f"checkpoint {path!r} does not exist; give MODEL.WEIGHTS another file, or train without --resume if "
                f"{os.path.join(self.save_dir, LAST_CHECKPOINT)!r} names it"
            )
        self._loading = path
        return super().load(path, *args, **kwargs)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = list(checkpoint["model"])[:3]  # loading removes its entries
        incompatible = super()._load_model(checkpoint)
        wanted = {name for name, _ in self.model.named_parameters()}
        if wanted and wanted <= set(incompatible.missing_keys):
            raise WeightsError(
                f"checkpoint {self._loading!r}: no tensor in it matches this model (it has {', '.join(found)}); use "
                "the config that it was trained with, or, for teacher and student, export one of them with "
                "sohes export"
            )
        self._check_fit(incompatible)
        return incompatible

    def _check_fit(self, incompatible: Any) -> None:
        shapes = {key: f"{key} is {found}, not {wanted}" for key, found, wanted in incompatible.incorrect_shapes}
        unmatched = {key for key in incompatible.missing_keys if not key.endswith("num_batches_tracked")} | set(shapes)
        counted = set(self.model.state_dict())
        if self._parts_may_lack:
            present = {_part(key) for key in (counted - unmatched) | set(shapes)}
            counted = {key for key in counted if _part(key) in present}
        wrong = sorted(unmatched & counted, key=lambda key: (key not in shapes, key))
        if len(wrong) > self._max_unmatched * len(counted):
            examples = "; ".join(shapes.get(key, f"no {key}") for key in wrong[:4])
            allowed = f" (MODEL.MAX_UNMATCHED allows {self._max_unmatched:.0%})" if self._max_unmatched else ""
            raise WeightsError(
                f"checkpoint {self._loading!r}: the weights do not match the model of this config: {len(wrong)} of its "
                f"{len(counted)} tensors are missing{allowed}: {examples}. Pass the config.yaml that the training "
                "wrote beside them"
            )

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        if isinstance(content, dict) and "model" not in content:
            if "model_state" in content:  # format of pycls
                content = {"model": content["model_state"], "matching_heuristics": True}
            elif filename.endswith(".pkl"):  # format of Caffe2 and Detectron1
                blobs = content.get("blobs", content)
                model = {key: value for key, value in blobs.items() if not str(key).endswith("_momentum")}
                content = {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
            else:
                content = {"model": content.get("state_dict", content)}
        content = _with_model(content, filename)
        content["model"] = current_names(content["model"])
        # Detectron2's notation for names of another code base: FILE?matching_heuristics=True
        parsed = getattr(self, "_parsed_url_during_load", None)
        if parsed is not None and parse_qs(parsed.query).get("matching_heuristics") == ["True"]:
            content["matching_heuristics"] = True
        return content


def _is_sound(path: str) -> bool:
    with suppress(WeightsError):
        read_weights(path)
        return True
    return False


def _part(key: str) -> str:
    return key.partition(".")[0]


def _with_model(content: Any, filename: str) -> dict[str, Any]:
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or not all(isinstance(value, Tensor) for value in model.values()):
        found = list(content)[:8] if isinstance(content, dict) else type(content).__name__
        raise WeightsError(
            f"checkpoint {filename!r} has no model: no dict of names to tensors at the top level or under 'model' "
            f"(found: {found})"
        )
    return content

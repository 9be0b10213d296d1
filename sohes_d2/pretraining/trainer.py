"""Trainer for self-supervised backbone pretraining."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.engine import hooks as detectron2_hooks
from detectron2.utils import comm

from .. import __version__
from ..data.loaders import build_training_loader
from ..engine.hooks import CountSkippedImages, is_due
from ..engine.trainer import SOHESTrainer, config_errors, load_backbone
from ..errors import ConfigError
from ..exploration.features.vit import load_vit_file
from ..structures.files import write_bytes, write_json
from ..structures.images import set_max_image_pixels
from ..weights import load_weights
from .dense_check import DenseCheck
from .distillation import FeatureDistillation
from .self_distillation import SelfDistillation
from .views import MultiCrop, list_photos
from .vit import export_vit

logger = logging.getLogger(__name__)

METHODS = {"self_distillation": SelfDistillation, "distillation": FeatureDistillation}
BEST, LAST, CARD = "backbone_best.safetensors", "backbone_last.safetensors", "model_card.json"


class PretrainingTrainer(SOHESTrainer):
    """Trains a ViT on photos without labels; construct it, then call `resume_or_load` and `train`.

    In addition to the files of every training, the last and the best backbone are written to OUTPUT_DIR. A resumed
    training gives the same result as an uninterrupted one.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: see `sohes_d2.config`, PRETRAINING.

        Raises:
            ConfigError: an invalid setting.
            InputError: PRETRAINING.IMAGES contains no usable photos.
            WeightsError: MODEL.VIT.WEIGHTS or PRETRAINING.TEACHER.WEIGHTS is missing, unreadable or does not match.
        """
        if not cfg.PRETRAINING.IMAGES:
            raise ConfigError("PRETRAINING.IMAGES is empty; name one or more folders of photos")
        set_max_image_pixels(cfg.INPUT.MAX_IMAGE_PIXELS)
        self._photos = list_photos(cfg.PRETRAINING.IMAGES)
        self.build_mapper(cfg)  # raise its errors before weights are loaded
        super().__init__(cfg)
        model = self.checkpointer.model
        patch = int(model.student_vit.patch_embed.feat_ratio())
        for key in ("GLOBAL_SIZE", "LOCAL_SIZE"):
            size = cfg.PRETRAINING.VIEWS[key]
            if size < patch or size % patch:
                raise ConfigError(
                    f"PRETRAINING.VIEWS.{key} {size} is not a multiple of the patch size {patch} of MODEL.VIT"
                )

    def load_initial_weights(self) -> None:
        """Load MODEL.VIT.WEIGHTS into the student and the EMA teacher, if there is one; "random" loads nothing."""
        model = self.checkpointer.model
        load_backbone(lambda source: load_weights(model.student_vit, source), self.cfg)
        model.vit.load_state_dict(model.student_vit.state_dict())

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``PRETRAINING.METHOD``.

        Raises:
            ConfigError: an invalid setting.
        """
        if cfg.PRETRAINING.METHOD not in METHODS:
            raise ConfigError(f"PRETRAINING.METHOD {cfg.PRETRAINING.METHOD!r} is not one of {', '.join(METHODS)}")
        with config_errors():
            return METHODS[cfg.PRETRAINING.METHOD](cfg).to(cfg.MODEL.DEVICE).train()

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool = True) -> Callable[[Any], Any]:
        """Build the mapper from a photo's record to its views.

        Raises:
            ConfigError: a setting out of range.
        """
        views = cfg.PRETRAINING.VIEWS
        uses_local = cfg.PRETRAINING.METHOD == "self_distillation" and cfg.PRETRAINING.LOSSES.IMAGE > 0
        try:
            return MultiCrop(cfg) if uses_local else MultiCrop(cfg, local_count=0)
        except ValueError as error:
            raise ConfigError(f"PRETRAINING.VIEWS {dict(views)}: {error}") from error

    def build_train_loader(  # type: ignore[override]  # needs the photos of the instance
        self, cfg: CfgNode, start_iteration: int = 0
    ) -> Iterable[list[dict[str, Any]]]:
        """Build the iterable of batches of views, starting at an iteration."""
        return build_training_loader(cfg, self.build_mapper(cfg), self._photos, start_iteration)

    def build_hooks(self) -> list[HookBase | None]:
        """Build the hooks, in order."""
        model, cfg = self.checkpointer.model, self.cfg
        hooks: list[HookBase | None] = [
            detectron2_hooks.IterationTimer(),
            _UpdateTeacher(model) if isinstance(model, SelfDistillation) else None,
            detectron2_hooks.LRScheduler(),
            CountSkippedImages(),
            KeepBackbone(cfg, model, len(self._photos)),
        ]
        if comm.is_main_process():
            hooks.append(self.build_checkpoints(max_to_keep=2))
            hooks.append(detectron2_hooks.PeriodicWriter(self.build_writers(), period=20))
        return hooks


class _UpdateTeacher(HookBase):
    """Sets the model's iteration before a step and updates the EMA teacher after it."""

    def __init__(self, model: SelfDistillation):
        self._model = model

    def before_train(self) -> None:
        self.trainer.optimizer.register_step_pre_hook(lambda *_: self._model.after_backward())

    def before_step(self) -> None:
        self._model.begin(self.trainer.iter)

    def after_step(self) -> None:
        self._model.after_step()


class KeepBackbone(HookBase):
    """Writes and checks the backbone every TEST.EVAL_PERIOD iterations and at the end; keeps the best, writes the card.

    The check reads the written file, so the score is that of the stored weights.
    """

    def __init__(self, cfg: CfgNode, model: Any, photos: int):
        """
        Args:
            cfg: config of the training.
            model: its attribute `vit` is the ViT to export.
            photos: number of training photos.
        """
        self._cfg, self._model, self._photos = cfg, model, photos
        self._history: list[dict[str, float]] = []
        self._seconds = 0.0
        self._check: DenseCheck | None = None

    def before_train(self) -> None:
        self._begun = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Results of the checks so far, and the training time in seconds."""
        return {"history": json.dumps(self._history), "seconds": self._elapsed()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of `state_dict`."""
        self._history, self._seconds = json.loads(state["history"]), state["seconds"]

    def after_step(self) -> None:
        if is_due(self.trainer, self._cfg.TEST.EVAL_PERIOD):
            if comm.is_main_process():
                self._keep(self.trainer.iter + 1)
            comm.synchronize()

    def _elapsed(self) -> float:
        return self._seconds + time.perf_counter() - getattr(self, "_begun", time.perf_counter())

    def _keep(self, done: int) -> None:
        node, folder = self._cfg.PRETRAINING, self._cfg.OUTPUT_DIR
        seconds = self._elapsed()
        last = os.path.join(folder, LAST)
        vit = self._cfg.MODEL.VIT
        architecture = {"name": vit.NAME, "options": dict(vit.OPTIONS), "facet": node.CHECK.FACET}
        export_vit(self._model.vit, last, architecture, node.OUTPUT_DTYPE)
        entry: dict[str, float] = {"iteration": done, "hours": round(seconds / 3600, 6)}
        if node.CHECK.JSON:
            score = self._score(last)
            entry.update(auc=score.auc, near_auc=score.near_auc)
            logger.info("Dense check after %d iterations: AUC %.4f, near AUC %.4f", done, score.auc, score.near_auc)
            self.trainer.storage.put_scalars(
                **{"dense/auc": score.auc, "dense/near_auc": score.near_auc}, smoothing_hint=False
            )
        is_best = all(_rank(entry) >= _rank(other) for other in self._history)
        self._history.append(entry)
        if is_best:
            write_bytes(os.path.join(folder, BEST), Path(last).read_bytes())
        # The check does not count as training time.
        self._begun = time.perf_counter() - (seconds - self._seconds)
        write_json(os.path.join(folder, CARD), self._card(architecture))

    def _score(self, path: str) -> Any:
        node = self._cfg.PRETRAINING.CHECK
        if self._check is None:
            self._check = DenseCheck(node.JSON, node.IMAGES, max_images=node.MAX_IMAGES)
        with _quiet("sohes_d2.weights"):
            extractor = load_vit_file(path, token_budget=node.TOKEN_BUDGET, device=self._cfg.MODEL.DEVICE)
        return self._check.score(extractor)

    def _card(self, architecture: dict[str, Any]) -> dict[str, Any]:
        cfg, node = self._cfg, self._cfg.PRETRAINING
        best = max(self._history, key=_rank)
        return {
            "architecture": architecture,
            "parameters": sum(p.numel() for p in self._model.vit.parameters()),
            "method": node.METHOD,
            "data": {
                "images": [os.path.basename(os.path.normpath(source)) for source in node.IMAGES],
                "photos": self._photos,
                "broken_photos": len(self.trainer.data_loader.skipped),
                "labels": "none",
            },
            "iterations": self._history[-1]["iteration"],
            "photos_per_iteration": cfg.SOLVER.IMS_PER_BATCH,
            "hours": self._history[-1]["hours"],
            "processes": comm.get_world_size(),
            "device": cfg.MODEL.DEVICE,
            "best": best,
            "history": self._history,
            "settings": json.loads(json.dumps({"PRETRAINING": node, "SOLVER": cfg.SOLVER, "SEED": cfg.SEED})),
            "versions": {"sohes_d2": __version__, "torch": torch.__version__},
        }


def _rank(entry: dict[str, float]) -> float:
    """Sort key of the best backbone: the near AUC or, without a check, the iteration."""
    value = entry.get("near_auc", entry["iteration"])
    return -math.inf if math.isnan(value) else value


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence the info messages of a logger."""
    quiet = logging.getLogger(name)
    level = quiet.level
    quiet.setLevel(logging.WARNING)
    try:
        yield
    finally:
        quiet.setLevel(level)

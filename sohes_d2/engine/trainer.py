"""The trainer of phases 2 and 3: Detectron2's `DefaultTrainer` with this project's data, weights and evaluation."""

from __future__ import annotations

import inspect
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from .. import correction  # noqa: F401  (registers the models)
from ..data.loaders import build_test_loader, build_training_loader, images_per_process
from ..data.training.mapper import PseudoLabelDatasetMapper
from ..errors import ConfigError, InputError, WeightsError
from ..evaluation.entity_evaluator import EntityEvaluator
from ..evaluation.results import check_readable, defined_only, write_evaluation
from ..weights.checkpoint import SOHESCheckpointer
from . import optimizer
from .hooks import Checkpoints, CountSkippedImages, DrawExamples, Evaluation
from .step import TrainingStep, build_precision
from .stopping import stopping
from .writers import build_writers

logger = logging.getLogger(__name__)

FINAL = "model_final"


class SOHESTrainer(DefaultTrainer):
    """Trains any Detectron2 meta-architecture on pseudo-labels.

    Use it like `DefaultTrainer`: construct, `resume_or_load`, `train`. A training that was stopped and resumed has the
    same losses as an uninterrupted one: images, augmentation and the model's randomness depend only on seed and
    iteration.

    A model class may define ``needs_teacher_view`` (True: it is trained on two views of each image, and also on images
    without labels), ``starts_from`` (description of what MODEL.WEIGHTS must name when a training begins),
    ``build_hooks(cfg, last_checkpoint)``, and ``build_training_mapper(cfg)`` to replace `PseudoLabelDatasetMapper`.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: see `sohes_d2.config`. If SEED is negative, one is drawn, logged and stored in the checkpoints.

        Raises:
            ConfigError: an unknown optimizer, schedule or precision, or a batch size that is not divisible by the
                number of processes.
        """
        # Not DefaultTrainer.__init__, which creates the data loader before the first iteration is known, and supports
        # mixed precision and several processes only on CUDA.
        TrainerBase.__init__(self)
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self._draws_seed = cfg.SEED < 0
        self.cfg = _with_seed(cfg, comm.shared_random_seed() % 2**31) if self._draws_seed else cfg
        with config_errors():
            images_per_process(cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())
        model = self.build_model(cfg)
        self._trainer = TrainingStep(_distributed(model), self.build_optimizer(cfg, model), *build_precision(cfg))
        self.scheduler = self.build_lr_scheduler(cfg, self._trainer.optimizer)
        # A weak reference, since the checkpointer belongs to the trainer.
        self.checkpointer = SOHESCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            max_unmatched=cfg.MODEL.MAX_UNMATCHED,
            parts_may_lack=True,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume from the last checkpoint of OUTPUT_DIR, else start from MODEL.WEIGHTS, else from the pretrained
        backbone of MODEL.VIT.WEIGHTS.

        Raises:
            WeightsError: weights are unavailable, unreadable or do not match, or only some processes find a checkpoint
                to resume from.
            ConfigError: phase 3 without a model of phase 2.
        """
        resume = resume and self.checkpointer.has_checkpoint()
        if len(set(comm.all_gather(resume))) > 1:
            raise WeightsError(
                f"only some machines have a checkpoint in {self.cfg.OUTPUT_DIR!r}; put OUTPUT_DIR on a file system "
                "that all of them share"
            )
        if not resume and not self.cfg.MODEL.WEIGHTS:
            self.load_initial_weights()
        super().resume_or_load(resume)

    def load_initial_weights(self) -> None:
        """Load the weights of a training that neither resumes nor has MODEL.WEIGHTS."""
        needed = getattr(self.checkpointer.model, "starts_from", "")
        if needed:
            raise ConfigError(f"MODEL.WEIGHTS is empty: {self.cfg.MODEL.META_ARCHITECTURE} starts from {needed}")
        backbone: Any = getattr(self.checkpointer.model, "backbone", None)
        if hasattr(backbone, "load_pretrained"):
            load_backbone(backbone.load_pretrained, self.cfg)

    def train(self) -> Any:
        """Train to the end.

        Returns:
            Results of the last evaluation if TEST.EXPECTED_RESULTS is set, as with `DefaultTrainer`.

        Raises:
            FloatingPointError: a loss or gradient is not finite; the message names the last checkpoint.
            OutputError: a checkpoint, metrics.json or an evaluation cannot be written.
            KeyboardInterrupt: SIGINT or SIGTERM; the progress is saved, unless an iteration was interrupted.
        """
        if self._draws_seed:
            logger.info("SEED %d was drawn; set it to repeat this training", self.cfg.SEED)
        self._trainer.feed(self.build_train_loader(self.cfg, self.start_iter), self.cfg.SEED)
        if self.start_iter >= self.max_iter:
            self._finish_checkpoints()
        try:
            return super().train()
        except KeyboardInterrupt:
            self._save_last_iteration()
            raise
        except Exception as error:
            if stopping.requested:  # the signal ended a required process, for example of a data loader
                raise KeyboardInterrupt from error
            raise
        finally:
            self._trainer.stop_feeding()

    def _finish_checkpoints(self) -> None:
        """Write the final checkpoint if a kill or a full disk prevented it at the end of the training."""
        if comm.is_main_process() and os.path.basename(self.checkpointer.get_checkpoint_file()) != f"{FINAL}.pth":
            self.checkpointer.save(FINAL, iteration=self.iter)

    def _save_last_iteration(self) -> None:
        """Save the last complete iteration, unless it is already saved or the next one was interrupted."""
        done = next((hook.unsaved for hook in self._hooks if isinstance(hook, Checkpoints)), None)
        if done is not None:
            self.iter = done  # the loop may have started the next one
            self.checkpointer.save(f"model_{done:07d}", iteration=done)

    def run_step(self) -> None:
        """One iteration."""
        self._trainer.iter = self.iter
        start = time.perf_counter()
        try:
            self._trainer.run_step()
            if self.iter == self.start_iter:  # losses are first printed after 20 iterations
                seconds = time.perf_counter() - start
                logger.info("Iteration %d of %d done in %.1f s", self.iter + 1, self.max_iter, seconds)
        except FloatingPointError as error:
            last = "there is no checkpoint yet"
            if self.checkpointer.has_checkpoint():
                last = f"the last checkpoint is {self.checkpointer.get_checkpoint_file()}"
            raise FloatingPointError(
                f"training stopped in iteration {self.iter}: {error}\n{last}. Lower SOLVER.BASE_LR, clip gradients "
                "(SOLVER.CLIP_GRADIENTS), lengthen SOLVER.WARMUP_ITERS, or train without SOLVER.AMP; --resume would "
                "fail in the same iteration again."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer, loss scale and seed."""
        return {**super().state_dict(), "seed": self.cfg.SEED}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        super().load_state_dict(state_dict)
        seed = state_dict.get("seed", self.cfg.SEED)
        if self._draws_seed:
            self.cfg = _with_seed(self.cfg, seed)
        elif seed != self.cfg.SEED:
            logger.warning("SEED is %d, the checkpoint was made with %d: other images follow", self.cfg.SEED, seed)

    def evaluate(self) -> dict[str, Any]:
        """Evaluate on all test sets; writes ``OUTPUT_DIR/evaluation.json`` and returns the results without NaNs."""
        self._last_eval_results = self.test(self.cfg, self.model)
        done = min(self.iter + 1, self.max_iter)  # Detectron2 increments `iter` once more after the last iteration
        write_evaluation(self.cfg.OUTPUT_DIR, self.cfg.DATASETS.TEST, self._last_eval_results, done)
        try:
            check_readable(self.cfg.DATASETS.TEST, self._last_eval_results, self.cfg.TEST.MAX_UNREADABLE)
        except InputError as error:  # should not end the training
            logger.error("%s", error)
        return defined_only(self._last_eval_results)

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks and this project's, in the order in which they run after a step."""
        defaults = [hook for hook in super().build_hooks() if not isinstance(hook, EvalHook)]
        # Writers run last, to write the results of the other hooks.
        writers = [hook for hook in defaults if isinstance(hook, PeriodicWriter)]
        hooks = [*(hook for hook in defaults if hook not in writers), CountSkippedImages()]
        hooks = [self.build_checkpoints() if isinstance(hook, PeriodicCheckpointer) else hook for hook in hooks]
        hooks = [*self._build_model_hooks(), *hooks]
        if comm.is_main_process() and self.cfg.TEST.VISUALIZE > 0 and self.cfg.DATASETS.TEST:
            hooks.append(self._build_examples())
        return [*hooks, Evaluation(self.cfg.TEST.EVAL_PERIOD, self.evaluate), *writers]

    def build_checkpoints(self, max_to_keep: int | None = None) -> Checkpoints:
        """The hook that saves checkpoints, on the main process."""
        return Checkpoints(self.checkpointer, self.cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=max_to_keep)

    def build_writers(self) -> list[EventWriter]:
        """Writers of the log, metrics.json and TensorBoard."""
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def _build_model_hooks(self) -> list[HookBase]:
        """The hooks that the model defines; they run before the checkpoint hook."""
        build = getattr(self.checkpointer.model, "build_hooks", None)
        if build is None:
            return []
        checkpointer = self.checkpointer
        with config_errors():
            return build(self.cfg, lambda: checkpointer.get_checkpoint_file() if checkpointer.has_checkpoint() else "")

    def _build_examples(self) -> HookBase:
        name = self.cfg.DATASETS.TEST[0]
        return DrawExamples(
            self.cfg.TEST.EVAL_PERIOD,
            self.checkpointer.model,
            lambda: get_detection_dataset_dicts(name, filter_empty=False),
            self.build_mapper(self.cfg, is_train=False),
            self.cfg.TEST.VISUALIZE,
        )

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the model of ``MODEL.META_ARCHITECTURE``.

        Raises:
            ConfigError: an invalid setting.
        """
        with config_errors():
            return super().build_model(cfg)

    build_optimizer = staticmethod(optimizer.build_optimizer)
    build_lr_scheduler = staticmethod(optimizer.build_lr_scheduler)

    @classmethod
    def build_mapper(cls, cfg: CfgNode, is_train: bool) -> Callable[[Any], Any]:
        """Mapper from Detectron2's dict of an image to an input of the model."""
        build = getattr(META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE), "build_training_mapper", None)
        return build(cfg) if is_train and build else PseudoLabelDatasetMapper(cfg, is_train=is_train)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iteration: int = 0) -> Iterable[list[dict[str, Any]]]:
        """Batches from an iteration on; each depends only on its iteration and SEED.

        Raises:
            ConfigError: a batch size not divisible by the number of processes, or a data set without usable images.
        """
        mapper = cls.build_mapper(cfg, is_train=True)
        with config_errors():
            return build_training_loader(cfg, mapper, start_iteration=start_iteration)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """All images of a data set, one at a time, distributed over the processes."""
        return build_test_loader(cfg, dataset_name, cls.build_mapper(cfg, is_train=False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> EntityEvaluator:
        """Evaluator of a data set; predictions are written to ``OUTPUT_DIR/inference/dataset_name``."""
        return EntityEvaluator(dataset_name, f"{cfg.OUTPUT_DIR}/inference/{dataset_name}")


@contextmanager
def config_errors() -> Iterator[None]:
    """Context manager that converts a ValueError to a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_backbone(load: Callable[[str], Any], cfg: CfgNode) -> None:
    """Call ``load`` with the source of the pretrained backbone.

    The source is MODEL.VIT.WEIGHTS, or "hub:" + MODEL.VIT.NAME if it is empty; with "random", nothing is loaded. One
    process of each machine loads before the others, so that files are downloaded only once.
    """
    source = cfg.MODEL.VIT.WEIGHTS or f"hub:{cfg.MODEL.VIT.NAME}"
    if source == "random":
        return
    first = comm.get_local_rank() == 0
    if not first:
        comm.synchronize()
    load(source)
    if first:
        comm.synchronize()


def _distributed(model: nn.Module) -> nn.Module:
    """Wrap the model to average its gradients over processes, if there are several."""
    on_gpu = next(model.parameters()).device.type == "cuda"
    options = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"  # older torch
    return create_ddp_model(model, device_ids=[comm.get_local_rank()] if on_gpu else None, **{buffers: False})


def _with_seed(cfg: CfgNode, seed: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SEED = int(seed)
    cfg.freeze()
    return cfg

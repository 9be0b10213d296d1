"""One training iteration: batch, losses, gradients, optimizer step; mixed precision by `SOLVER.AMP`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage

from ..errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def build_precision(cfg: CfgNode) -> tuple[torch.autocast, torch.amp.GradScaler]:
    """Autocast for forward passes and losses, and the loss scaler, for ``SOLVER.AMP`` on ``MODEL.DEVICE``.

    Both do nothing without ``SOLVER.AMP.ENABLED``. Losses are scaled for float16 on CUDA only: bfloat16 has the range
    of float32. Detectron2's `AMPTrainer` supports only CUDA, and has no dtype option in release 0.6.

    Raises:
        ConfigError: an unknown dtype.
    """
    amp, device_type = cfg.SOLVER.AMP, torch.device(cfg.MODEL.DEVICE).type
    if amp.ENABLED and amp.DTYPE not in DTYPES:
        raise ConfigError(f"SOLVER.AMP.DTYPE {amp.DTYPE!r} is not one of {', '.join(DTYPES)}")
    is_float16 = amp.ENABLED and amp.DTYPE == "float16"
    scales = is_float16 and device_type == "cuda"
    if is_float16 and not scales:
        logger.warning(
            "float16 on %s trains without loss scaling: small gradients vanish; prefer SOLVER.AMP.DTYPE bfloat16",
            device_type,
        )
    autocast = torch.autocast(device_type, DTYPES[amp.DTYPE] if amp.ENABLED else None, enabled=amp.ENABLED)
    return autocast, torch.amp.GradScaler("cuda", enabled=scales)


class TrainingStep(SimpleTrainer):
    """Detectron2's `SimpleTrainer` with mixed precision and reproducible iterations.

    The model's randomness (sampled points, drop path) depends only on seed, iteration and process, so that a resumed
    training continues exactly as if it had not been stopped.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        autocast: torch.autocast,
        scaler: torch.amp.GradScaler,
    ):
        """
        Args:
            model: called with a batch, returns a dict of weighted losses, or one loss.
            optimizer: of the model's parameters.
            autocast, scaler: see `build_precision`.
        """
        super().__init__(model, (), optimizer)
        self.autocast, self.scaler = autocast, scaler
        self.data_loader: Iterable[Any] | None = None
        self._batches: Iterator[Any] = iter(())
        self._seed = 0

    def feed(self, data_loader: Iterable[Any], seed: int) -> None:
        """Set the source of the next iterations' batches and the seed of the model's randomness.

        Called when training begins, since both may depend on the checkpoint that is resumed.
        """
        self.data_loader = data_loader
        self._batches = iter(data_loader)
        self._seed = seed

    def stop_feeding(self) -> None:
        """End the data loader's processes."""
        if hasattr(self._batches, "close"):
            self._batches.close()

    def run_step(self) -> None:
        """Train on the next batch.

        Raises:
            FloatingPointError: a loss or a gradient is not finite; the weights are unchanged.
        """
        start = time.perf_counter()
        batch = next(self._batches)
        data_time = time.perf_counter() - start

        # Seed after fetching the batch, as a data loader draws from torch's generator when it starts its workers.
        mixed = np.random.SeedSequence((self._seed, self.iter, comm.get_rank()))
        seed_all_rng(int(mixed.generate_state(1)[0]))
        with self.autocast:
            losses = self.model(batch)
            if isinstance(losses, torch.Tensor):
                losses = {"total_loss": losses}
            total = sum(losses.values())
        self.optimizer.zero_grad()
        self.scaler.scale(total).backward()
        self._write_metrics(losses, data_time)  # raises if a loss is not finite, before the step
        self.scaler.step(self.optimizer)  # skipped if a scaled gradient overflowed
        self.scaler.update()

        storage = get_event_storage()
        if hasattr(self.optimizer, "grad_norm"):
            storage.put_scalar("grad_norm", self.optimizer.grad_norm)
        if self.scaler.is_enabled():
            storage.put_scalar("loss_scale", self.scaler.get_scale(), smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        """Optimizer and loss scale."""
        return {**super().state_dict(), "grad_scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from `state_dict`; the scale is ignored if this training uses no loss scaling."""
        super().load_state_dict(state)
        if state.get("grad_scaler"):  # empty if losses were not scaled
            self.scaler.load_state_dict(state["grad_scaler"])

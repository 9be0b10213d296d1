"""Mixed precision: autocast on the model's device, and loss scaling where float16 needs it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from detectron2.config import CfgNode

from ..errors import ConfigError

logger = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MixedPrecision:
    """How forward and backward passes are computed; without a dtype, as the model is."""

    def __init__(self, device: str, dtype: torch.dtype | None = None):
        """
        Args:
            device: of the model: "cpu", "cuda:1", "mps".
            dtype: bfloat16, float16, or None for full precision.
        """
        self._device_type = torch.device(device).type
        self._dtype = dtype
        # bfloat16 has the range of float32. float16 does not, and torch scales losses on CUDA.
        scaled = dtype == torch.float16 and self._device_type == "cuda"
        self.scaler = torch.amp.GradScaler("cuda", enabled=scaled)
        if dtype == torch.float16 and not scaled:
            logger.warning(
                "float16 on %s trains without loss scaling: small gradients vanish; prefer SOLVER.AMP.DTYPE bfloat16",
                self._device_type,
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> MixedPrecision:
        """The precision of ``SOLVER.AMP`` on ``MODEL.DEVICE``.

        Raises:
            ConfigError: an unknown dtype.
        """
        if not cfg.SOLVER.AMP.ENABLED:
            return cls(cfg.MODEL.DEVICE)
        if cfg.SOLVER.AMP.DTYPE not in DTYPES:
            raise ConfigError(f"SOLVER.AMP.DTYPE {cfg.SOLVER.AMP.DTYPE!r} is not one of {', '.join(DTYPES)}")
        return cls(cfg.MODEL.DEVICE, DTYPES[cfg.SOLVER.AMP.DTYPE])

    def autocast(self) -> AbstractContextManager:
        """The context of a forward pass and its losses."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device_type, self._dtype)

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of a scalar loss."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A step of the optimizer; it is left out where a scaled float16 gradient overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale; empty without one."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the loss scale; one of a training in another precision is left alone."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(dict(state))

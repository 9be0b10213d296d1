"""Gradient checkpointing of one module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute`` its inner activations are computed again in the backward pass.

    Outputs and gradients are the same either way: random numbers (drop path) are replayed. Not for modules whose
    forward pass has side effects, such as batch norm, whose running statistics would move twice.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)

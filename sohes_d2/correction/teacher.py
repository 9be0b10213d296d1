"""The teacher, an exponential moving average (EMA) of the student (Mean Teacher, NeurIPS 2017); its momentum."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from detectron2.utils import comm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def teacher_of(student: ModuleT) -> ModuleT:
    """A copy of the student, without gradients and in evaluation mode.

    Parameters without gradient are ignored by the optimizer and by distributed training.
    """
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher to ``momentum * teacher + (1 - momentum) * student``, in place.

    Buffers (running statistics, counters, constants) are copied, not averaged. With several processes, all copy the
    buffers of the first one's student: running statistics may differ between processes, but the teacher must not.
    All processes must call this together.

    Args:
        teacher: created by `teacher_of`.
        student: after an optimizer step.
        momentum: in [0, 1].

    Raises:
        TypeError: weights in half precision, too coarse for the small changes of a high momentum. Mixed precision
            (autocast) keeps them in float32.
    """
    averaged, current = list(teacher.parameters()), list(student.parameters())
    for parameter in averaged:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the teacher's weights are {parameter.dtype}, too coarse for a moving average; train in "
                "float32, with SOLVER.AMP for mixed precision"
            )
    get_ema_multi_avg_fn(momentum)(averaged, current, None)
    buffers = list(teacher.buffers())
    for buffer, source in zip(buffers, student.buffers()):
        buffer.copy_(source)
    if comm.get_world_size() > 1:
        _broadcast_from_first_process(buffers)


def _broadcast_from_first_process(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with those of the first process; tensors of one dtype are sent together."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        flat = torch.cat([tensor.flatten() for tensor in group])
        torch.distributed.broadcast(flat, 0)
        for tensor, value in zip(group, flat.split([tensor.numel() for tensor in group])):
            tensor.copy_(value.view_as(tensor))


@dataclass(frozen=True)
class MomentumSchedule:
    """Momentum of the teacher's EMA, with an optional warm-up.

    The teacher is, roughly, the mean of the student's last ``1 / (1 - momentum)`` states. In the warm-up this window
    grows linearly, from the last state alone to its full length after ``warmup`` updates: with update t, from 0,

        1 / (1 - m_t) = 1 + (1 / (1 - momentum) - 1) * min(t / warmup, 1)

    So the first update of a warm-up makes the teacher a copy of the student. With ``warmup = 1 / (1 - momentum) - 1``
    this is the ``min(1 - 1 / (t + 1), momentum)`` of Mean Teacher (Tarvainen and Valpola, NeurIPS 2017).

    Attributes:
        momentum: in [0, 1]; 0.9996 in HASSOD. With 1 the teacher never changes, also in the warm-up.
        warmup: number of updates until ``momentum`` is reached; 0: no warm-up.

    Raises:
        ValueError: a number out of its range.
    """

    momentum: float = 0.9996
    warmup: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"CORRECTION.EMA_MOMENTUM must lie in [0, 1], got {self.momentum}")
        if self.warmup < 0:
            raise ValueError(f"CORRECTION.EMA_WARMUP must not be negative, got {self.warmup}")

    @classmethod
    def from_config(cls, cfg: Any) -> MomentumSchedule:
        """The schedule of ``cfg.CORRECTION``."""
        return cls(cfg.CORRECTION.EMA_MOMENTUM, cfg.CORRECTION.EMA_WARMUP)

    def at(self, updates: int) -> float:
        """The momentum of the next update, after ``updates`` updates."""
        if updates >= self.warmup or self.momentum == 1:
            return self.momentum
        # the formula above, multiplied by (1 - momentum) to avoid a division by it
        change = 1 - self.momentum
        return 1 - change / (change + self.momentum * updates / self.warmup)

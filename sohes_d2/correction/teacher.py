"""The teacher: an exponential moving average (EMA) of the student (Mean Teacher, NeurIPS 2017)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

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

    Buffers (running statistics, counters, constants) are copied, not averaged. With several processes they are copied
    from the first one's student, because running statistics may differ between processes, but the teacher must not.
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
        _take_from_first_process(buffers)


def _take_from_first_process(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors with those of the first process; tensors of one dtype are sent together."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for some in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in some])
        torch.distributed.broadcast(flat, 0)
        for tensor, value in zip(some, flat.split([tensor.numel() for tensor in some])):
            tensor.copy_(value.view_as(tensor))

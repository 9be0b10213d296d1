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

    Parameters that need no gradient are left out by the optimizer, and distributed training does not wait for them.
    """
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher to ``momentum * teacher + (1 - momentum) * student``, in place.

    Buffers are copied, since the average of running statistics, of counters and of constants has no meaning. If there
    are several processes, they are those of the first one's student, because running statistics may differ between
    processes, but the teacher must not. All processes must call this together.

    Args:
        teacher: as `teacher_of` makes it.
        student: after a step of the optimizer.
        momentum: in [0, 1].

    Raises:
        TypeError: weights in half precision, whose steps are coarser than a high momentum's changes. Mixed precision
            (autocast) keeps them in float32.
    """
    averaged, current = list(teacher.parameters()), list(student.parameters())
    for parameter in averaged:
        if parameter.dtype in (torch.float16, torch.bfloat16):
            raise TypeError(
                f"the teacher's weights are {parameter.dtype}, in which a moving average stands still; train in "
                "float32, with SOLVER.AMP for mixed precision"
            )
    get_ema_multi_avg_fn(momentum)(averaged, current, None)
    buffers = list(teacher.buffers())
    for buffer, source in zip(buffers, student.buffers()):
        buffer.copy_(source)
    if comm.get_world_size() > 1:
        _take_from_first_process(buffers)


def _take_from_first_process(tensors: Sequence[Tensor]) -> None:
    """Overwrite tensors by those of the first process, all of one type at once."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        by_type.setdefault(tensor.dtype, []).append(tensor)
    for some in by_type.values():
        flat = torch.cat([tensor.flatten() for tensor in some])
        torch.distributed.broadcast(flat, 0)
        for tensor, value in zip(some, flat.split([tensor.numel() for tensor in some])):
            tensor.copy_(value.view_as(tensor))

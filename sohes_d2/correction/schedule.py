"""Schedules of phase 3: loss weights of the two branches and EMA momentum of the teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

SHAPES = ("cosine", "linear", "constant")


@dataclass(frozen=True)
class BranchSchedule:
    """Loss weights of the initial and the teacher's labels over the training (HASSOD, section 3.3).

    Attributes:
        initial: weights of the losses on the initial labels at the start and the end of training.
        teacher: weights of the losses on the teacher's labels at the start and the end of training.
        shape: of the transition: "cosine" (half a period), "linear", or "constant" (the start weights).
    """

    initial: tuple[float, float] = (1.0, 0.0)
    teacher: tuple[float, float] = (2.0, 3.0)
    shape: str = "cosine"

    def __post_init__(self) -> None:
        for key, ends in (("INITIAL_WEIGHT", self.initial), ("TEACHER_WEIGHT", self.teacher)):
            if len(ends) != 2 or not all(math.isfinite(end) and end >= 0 for end in ends):
                raise ValueError(f"CORRECTION.{key} must be two numbers of at least 0, start and end; got {list(ends)}")
        if self.shape not in SHAPES:
            raise ValueError(f"CORRECTION.WEIGHT_SCHEDULE {self.shape!r} is not one of {', '.join(SHAPES)}")
        # between start and end no weight is 0, so only these need a check
        for progress, moment in ((0, "start"), (1, "end")):
            if sum(self.at(progress, 1)) == 0:
                raise ValueError(
                    f"CORRECTION.INITIAL_WEIGHT and TEACHER_WEIGHT are both 0 at the {moment} of training, so that "
                    "nothing would be learned"
                )

    @classmethod
    def from_config(cls, cfg: Any) -> BranchSchedule:
        """The schedule of ``cfg.CORRECTION``.

        Raises:
            ValueError: invalid weights, or an unknown shape.
        """
        node = cfg.CORRECTION
        return cls(tuple(node.INITIAL_WEIGHT), tuple(node.TEACHER_WEIGHT), node.WEIGHT_SCHEDULE)

    def at(self, iteration: int, max_iter: int) -> tuple[float, float]:
        """(weight of the initial branch, weight of the teacher branch) in an iteration, from 0, of ``max_iter``."""
        progress = min(iteration / max_iter, 1.0)
        share = {"cosine": (1 - math.cos(math.pi * progress)) / 2, "linear": progress, "constant": 0.0}[self.shape]
        initial, teacher = (start + (end - start) * share for start, end in (self.initial, self.teacher))
        return initial, teacher


@dataclass(frozen=True)
class MomentumSchedule:
    """Momentum of the teacher's EMA, with an optional warm-up.

    The teacher is, roughly, the mean of the student's last ``1 / (1 - momentum)`` states. In the warm-up this window
    grows linearly, from the last state alone to its full length after ``warmup`` updates: with update t, from 0,

        1 / (1 - m_t) = 1 + (1 / (1 - momentum) - 1) * min(t / warmup, 1)

    So the first update makes the teacher a copy of the student. With ``warmup = 1 / (1 - momentum) - 1`` this is the
    ``min(1 - 1 / (t + 1), momentum)`` of Mean Teacher (Tarvainen and Valpola, NeurIPS 2017).

    Attributes:
        momentum: in [0, 1]; 0.9996 in HASSOD. With 1 the teacher never changes, also in the warm-up.
        warmup: number of updates until it is reached; 0: no warm-up.
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
        """The schedule of ``cfg.CORRECTION``.

        Raises:
            ValueError: a number out of its range.
        """
        return cls(cfg.CORRECTION.EMA_MOMENTUM, cfg.CORRECTION.EMA_WARMUP)

    def at(self, updates: int) -> float:
        """The momentum of the next update, after ``updates`` updates."""
        if updates >= self.warmup or self.momentum == 1:
            return self.momentum
        # the formula above, multiplied by (1 - momentum) to avoid a division by it
        change = 1 - self.momentum
        return 1 - change / (change + self.momentum * updates / self.warmup)

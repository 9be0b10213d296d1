"""Training hook of phase 3: what runs before and after a step of `SOHESMutualLearning`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import SOHESError
from .guard import CollapseGuard, TeacherStatistics
from .schedule import BranchSchedule, MomentumSchedule

if TYPE_CHECKING:
    from .meta_arch import SOHESMutualLearning


class MutualLearningHook(HookBase):
    """Sets the branch weights before a step; then checks the teacher for collapse, updates it and logs its statistics.

    It must run before the hook that writes checkpoints, so that these contain the teacher of their iteration, and none
    is written after a collapse. All processes need it.

    Scalars, under "correction/": initial_weight, teacher_weight, ema_momentum, labels_per_image, mean_score,
    disagreement (see `guard`).
    """

    def __init__(
        self,
        model: SOHESMutualLearning,
        *,
        branches: BranchSchedule,
        momentum: MomentumSchedule,
        guard: CollapseGuard,
        last_checkpoint: Callable[[], str] = lambda: "",
    ):
        """
        Args:
            model: without the wrapper for distributed training.
            branches: schedule of the branch weights.
            momentum: schedule of the EMA momentum.
            guard: collapse detection.
            last_checkpoint: returns the path of the last checkpoint, or "".
        """
        self.updates = 0
        self._model = model
        self._branches = branches
        self._momentum = momentum
        self._guard = guard
        self._last_checkpoint = last_checkpoint
        self._good_checkpoint = ""

    @classmethod
    def from_config(
        cls, cfg: Any, model: SOHESMutualLearning, last_checkpoint: Callable[[], str]
    ) -> MutualLearningHook:
        """The hook of ``cfg.CORRECTION``.

        Raises:
            ValueError: a setting out of its range.
        """
        return cls(
            model,
            branches=BranchSchedule.from_config(cfg),
            momentum=MomentumSchedule.from_config(cfg),
            guard=CollapseGuard.from_config(cfg),
            last_checkpoint=last_checkpoint,
        )

    def before_step(self) -> None:
        self._model.branch_weights = self._branches.at(self.trainer.iter, self.trainer.max_iter)

    def after_step(self) -> None:
        """
        Raises:
            SOHESError: see `CollapseGuard.observe`; on all processes at once.
        """
        initial, teacher = self._model.branch_weights
        momentum = self._momentum.at(self.updates)
        scalars = {"initial_weight": initial, "teacher_weight": teacher, "ema_momentum": momentum}
        if self._model.statistics is not None:
            statistics = TeacherStatistics.from_sums(_sum_over_processes(self._model.statistics))
            self._watch(statistics)
            scalars["labels_per_image"] = statistics.labels
            if statistics.score is not None and statistics.disagreement is not None:
                scalars.update(mean_score=statistics.score, disagreement=statistics.disagreement)
        self._model.update_teacher(momentum)
        self.updates += 1
        self.trainer.storage.put_scalars(**{f"correction/{name}": value for name, value in scalars.items()})

    def _watch(self, statistics: TeacherStatistics) -> None:
        try:
            if self._guard.observe(statistics):
                self._good_checkpoint = self._last_checkpoint()
        except SOHESError as error:
            good = self._good_checkpoint
            where = f"the last checkpoint before is {good}" if good else "there is no checkpoint from before"
            raise SOHESError(
                f"self-correction stopped in iteration {self.trainer.iter}: {error}\n{where}. Lower CORRECTION."
                "THRESHOLD or SOLVER.BASE_LR, raise CORRECTION.EMA_MOMENTUM, or let the initial labels count for "
                "longer (CORRECTION.INITIAL_WEIGHT); CORRECTION.GUARD says what counts as a collapse."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Number of teacher updates, and the guard's counters."""
        return {"updates": self.updates, "guard": self._guard.state_dict(), "good_checkpoint": self._good_checkpoint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.updates = state["updates"]
        self._guard.load_state_dict(state["guard"])
        self._good_checkpoint = state["good_checkpoint"]


def _sum_over_processes(sums: torch.Tensor) -> list[float]:
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(sums)
    return sums.tolist()

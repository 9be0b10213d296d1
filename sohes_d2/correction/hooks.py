"""Training hooks of phase 3: branch weights, EMA updates, collapse detection, pictures of the teacher's labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..errors import SOHESError
from ..structures.forest import Forest
from ..structures.masks import encode_masks
from ..visualization.draw import forest_figure
from .guard import CollapseGuard, TeacherStatistics
from .teacher import MomentumSchedule

SHAPES = ("cosine", "linear", "constant")
FIGURE_WIDTH = 1200  # pixels


@dataclass(frozen=True)
class BranchSchedule:
    """Loss weights of the initial and the teacher's labels over the training (HASSOD, section 3.3).

    Attributes:
        initial: weights of the losses on the initial labels at the start and the end of training.
        teacher: weights of the losses on the teacher's labels at the start and the end of training.
        shape: of the transition: "cosine" (half a period), "linear", or "constant" (the start weights).

    Raises:
        ValueError: invalid weights, or an unknown shape.
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
        # in between, both are 0 only if they are 0 at the start and the end
        for progress, moment in ((0, "start"), (1, "end")):
            if sum(self.at(progress, 1)) == 0:
                raise ValueError(
                    f"CORRECTION.INITIAL_WEIGHT and TEACHER_WEIGHT are both 0 at the {moment} of training, so that "
                    "nothing would be learned"
                )

    @classmethod
    def from_config(cls, cfg: Any) -> BranchSchedule:
        """The schedule of ``cfg.CORRECTION``."""
        node = cfg.CORRECTION
        return cls(tuple(node.INITIAL_WEIGHT), tuple(node.TEACHER_WEIGHT), node.WEIGHT_SCHEDULE)

    def at(self, iteration: int, max_iter: int) -> tuple[float, float]:
        """Weights of the initial and of the teacher branch in iteration ``iteration``, from 0, of ``max_iter``."""
        progress = min(iteration / max_iter, 1.0)
        share = {"cosine": (1 - math.cos(math.pi * progress)) / 2, "linear": progress, "constant": 0.0}[self.shape]
        initial, teacher = (start + (end - start) * share for start, end in (self.initial, self.teacher))
        return initial, teacher


class MutualLearningHook(HookBase):
    """Sets the branch weights before a step; then checks the teacher for collapse, updates it and logs its statistics.

    It must run before the hook that writes checkpoints, so that these contain the teacher of their iteration, and none
    is written after a collapse. All processes need it.

    Scalars, under "correction/": initial_weight, teacher_weight, ema_momentum, labels_per_image, mean_score,
    disagreement (see `TeacherStatistics`).
    """

    def __init__(
        self,
        model: Any,
        *,
        branches: BranchSchedule,
        momentum: MomentumSchedule,
        guard: CollapseGuard,
        last_checkpoint: Callable[[], str],
    ):
        """
        Args:
            model: a `SOHESMutualLearning`, without the wrapper for distributed training.
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
            self._check_for_collapse(statistics)
            scalars["labels_per_image"] = statistics.labels
            if statistics.score is not None and statistics.disagreement is not None:
                scalars.update(mean_score=statistics.score, disagreement=statistics.disagreement)
        self._model.update_teacher(momentum)
        self.updates += 1
        self.trainer.storage.put_scalars(**{f"correction/{name}": value for name, value in scalars.items()})

    def _check_for_collapse(self, statistics: TeacherStatistics) -> None:
        try:
            if self._guard.observe(statistics):
                self._good_checkpoint = self._last_checkpoint()
        except SOHESError as error:
            good = self._good_checkpoint
            where = f"the last checkpoint before the collapse is {good}" if good else "there is no checkpoint before it"
            raise SOHESError(
                f"self-correction stopped in iteration {self.trainer.iter}: {error}\n{where}. Lower CORRECTION."
                "THRESHOLD or SOLVER.BASE_LR, raise CORRECTION.EMA_MOMENTUM, or CORRECTION.INITIAL_WEIGHT; "
                "CORRECTION.GUARD defines what counts as a collapse."
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """Number of teacher updates, state of the guard, and path of the last checkpoint before a collapse."""
        return {"updates": self.updates, "guard": self._guard.state_dict(), "good_checkpoint": self._good_checkpoint}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from `state_dict`."""
        self.updates = state["updates"]
        self._guard.load_state_dict(state["guard"])
        self._good_checkpoint = state["good_checkpoint"]


class DrawTeacherLabels(HookBase):
    """Draws the first image of a batch with the teacher's labels, and its strong view, for TensorBoard.

    It runs on the main process only, in the first iteration and every ``period`` iterations after it.
    """

    def __init__(self, model: Any, period: int, image_format: str):
        """
        Args:
            model: a `SOHESMutualLearning`, without the wrapper for distributed training.
            period: iterations between two pictures, at least 1.
            image_format: of the model's input, "RGB" or "BGR".
        """
        self._model = model
        self._period = period
        self._image_format = image_format
        self._pictures: dict[str, np.ndarray] = {}

    def before_step(self) -> None:
        self._model.observer = None if self.trainer.iter % self._period else self._observe

    def after_step(self) -> None:
        for name, picture in self._pictures.items():
            self.trainer.storage.put_image(f"correction/{name}", np.ascontiguousarray(picture.transpose(2, 0, 1)))
        self._pictures.clear()

    def _observe(self, batch: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        weak, strong = (self._picture(batch[0][name]) for name in ("image_weak", "image"))
        forest = forest_of_target(targets[0], weak.shape[:2])
        self._pictures = {
            "teacher_labels": forest_figure(weak, forest, "the teacher's labels", FIGURE_WIDTH),
            "student_view": strong,
        }

    def _picture(self, image: Tensor) -> np.ndarray:
        picture = image.cpu().numpy().transpose(1, 2, 0)
        return picture[..., ::-1] if self._image_format == "BGR" else picture


def forest_of_target(target: Mapping[str, Tensor], image_size: tuple[int, int]) -> Forest:
    """The forest of the teacher's labels for an image (H, W): by their ancestors, or by coverage if they have none."""
    masks = encode_masks(target["masks"][:, : image_size[0], : image_size[1]].cpu())
    scores = target["scores"].cpu().numpy()
    if "ancestors" not in target:
        return Forest.from_masks(masks, image_size, scores=scores)
    ancestors = target["ancestors"].cpu().numpy().astype(np.float32)
    return Forest.from_probabilities(masks, ancestors, image_size, theta_cover=0, scores=scores)


def _sum_over_processes(sums: Tensor) -> list[float]:
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(sums)
    return sums.tolist()

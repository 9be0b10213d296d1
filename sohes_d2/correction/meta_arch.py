"""Teacher and student as one Detectron2 model: the student learns from labels and from the teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList
from detectron2.utils import comm

from ..modeling.meta_arch import SOHES, cut
from ..modeling.test_time_augmentation import NO_TTA, TTA
from ..structures.crops import NO_CROPS, CropLayers
from .guard import CollapseGuard, finite_images, statistics_sums
from .hooks import BranchSchedule, DrawTeacherLabels, MutualLearningHook
from .targets import TeacherTargets
from .teacher import MomentumSchedule, teacher_of, update_teacher

logger = logging.getLogger(__name__)

MODELS = ("student", "teacher")
PICTURES = 20  # pictures of the teacher's labels per training
Batch = Sequence[Mapping[str, Any]]
Targets = list[dict[str, Tensor]]


@META_ARCH_REGISTRY.register()
class SOHESMutualLearning(nn.Module):
    """Two segmenters of one architecture (SOHES, section 3.3, self-correction).

    The student is trained on the strong view of an image, by one criterion, with two sets of labels: the initial
    labels, and the teacher's predictions on the weak view. The teacher is the EMA of the student. In evaluation one of
    them is used, like a single model.

    A checkpoint of one segmenter is loaded into both; one of this model holds both, under "student." and "teacher.".

    Attributes:
        needs_teacher_view: True: training images come in two views, and may have no labels.
        starts_from: description of the model that MODEL.WEIGHTS must name at the start of a training.
        branch_weights: weights of the losses on the initial and the teacher's labels, set during training. A branch of
            weight 0 is not computed.
        statistics: of the last training step, see `statistics_sums`; None if the teacher's branch was skipped.
        observer: if not None, it is called in every training step with the batch and the teacher's labels.
    """

    needs_teacher_view = True
    starts_from = "the model of phase 2, for example output/instruction/model_final.pth"

    @configurable
    def __init__(
        self,
        *,
        student: SOHES,
        targets: Callable[..., Targets],
        evaluate: str = "teacher",
        teacher_tta: TTA = NO_TTA,
        teacher_crops: CropLayers = NO_CROPS,
        branch_weights: tuple[float, float] = (1.0, 2.0),
    ):
        """
        Args:
            student: a `SOHES`; the teacher is created as a copy.
            targets: converts the teacher's outputs to targets of the criterion, see `TeacherTargets`.
            evaluate: which model is evaluated, "student" or "teacher".
            teacher_tta: test-time augmentation of the teacher on the weak view of an image.
            teacher_crops: crops of the weak view as additional inputs of the teacher, each resized to the view's size.
            branch_weights: initial value of the attribute.

        Raises:
            ValueError: an unknown ``evaluate``.
        """
        super().__init__()
        if evaluate not in MODELS:
            raise ValueError(f"CORRECTION.EVALUATE {evaluate!r} is not one of {', '.join(MODELS)}")
        self.student = student
        self.teacher = teacher_of(student)
        self.targets = targets
        self.evaluate = evaluate
        self.teacher_tta = teacher_tta
        self.teacher_crops = teacher_crops
        self.branch_weights = branch_weights
        self.statistics: Tensor | None = None
        self.observer: Callable[[Batch, Targets], None] | None = None

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {
            "student": SOHES(cfg),
            "targets": TeacherTargets.from_config(cfg),
            "evaluate": cfg.CORRECTION.EVALUATE,
            "teacher_tta": TTA.from_config(cfg.CORRECTION.TEACHER_TTA, "CORRECTION.TEACHER_TTA"),
            "teacher_crops": replace(CropLayers.from_config(cfg), layers=cfg.CORRECTION.TEACHER_CROPS),
            "branch_weights": BranchSchedule.from_config(cfg).at(0, 1),
        }

    def build_hooks(self, cfg: Any, last_checkpoint: Callable[[], str]) -> list[HookBase]:
        """Hooks that run around each step, before the hook that saves checkpoints.

        Args:
            cfg: config of the training.
            last_checkpoint: returns the path of the last checkpoint, or "".

        Raises:
            ValueError: a setting out of its range.
        """
        hooks: list[HookBase] = [
            MutualLearningHook(
                self,
                branches=BranchSchedule.from_config(cfg),
                momentum=MomentumSchedule.from_config(cfg),
                guard=CollapseGuard.from_config(cfg),
                last_checkpoint=last_checkpoint,
            )
        ]
        if comm.is_main_process() and cfg.TEST.VISUALIZE > 0:
            hooks.append(DrawTeacherLabels(self, max(1, cfg.SOLVER.MAX_ITER // PICTURES), cfg.INPUT.FORMAT))
        return hooks

    @property
    def device(self) -> torch.device:
        return self.student.device

    def train(self, mode: bool = True) -> SOHESMutualLearning:
        """Set the mode of all modules except the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def update_teacher(self, momentum: float) -> None:
        """Update the teacher by EMA; call it after an optimizer step, on all processes together."""
        update_teacher(self.teacher, self.student, momentum)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses in training, entities in evaluation.

        Args:
            batched_inputs: as for `SOHES`; in training, "image" is the student's strong view, "image_weak" the
                teacher's, of the same size; "photo_size" (h, w), if given, is the size of both without padding.
                "instances" may be missing or empty: then the image has no initial labels, and only the teacher's
                labels are used.

        Returns:
            The losses "initial/..." and "teacher/...", with the weights of the criterion and the branch; or per image
            the dict of `EntityInference.combine`.
        """
        if not self.training:
            return getattr(self, self.evaluate)(batched_inputs)
        images = self.student.preprocess(batched_inputs)
        padded_size = tuple(images.tensor.shape[-2:])
        initial = [
            self.student.prepare_targets([x], padded_size)[0] if len(x.get("instances", ())) else None
            for x in batched_inputs
        ]
        targets = {"initial": [self._criterion_target(target, padded_size) for target in initial]}
        if self.branch_weights[1] > 0:
            # First, so that the teacher's temporary memory is free before the student's activations exist.
            targets["teacher"], finite = self._ask_teacher(batched_inputs, initial, images)

        outputs = self.student.segment(images.tensor)
        self.statistics = None
        if "teacher" in targets:
            self.statistics = statistics_sums(targets["teacher"], outputs["pred_masks"], finite)
        losses: dict[str, Tensor] = {}
        for name, weight in zip(("initial", "teacher"), self.branch_weights):
            if weight > 0:
                found = self.student.losses(outputs, targets[name])
                losses.update((f"{name}/{key}", loss * weight) for key, loss in found.items())
        return losses

    @torch.no_grad()
    def _ask_teacher(
        self, batched_inputs: Batch, initial: Sequence[dict[str, Tensor] | None], student_images: ImageList
    ) -> tuple[Targets, Tensor]:
        """The teacher's labels, and (B,) bool: whether all of its outputs for an image are finite."""
        images = self.teacher.preprocess([{"image": x["image_weak"]} for x in batched_inputs])
        if images.image_sizes != student_images.image_sizes:
            raise ValueError(
                f"the teacher's views have the sizes {images.image_sizes}, the student's {student_images.image_sizes}: "
                "both views of an image must have the same geometry"
            )
        size = (images.tensor.shape[-2], images.tensor.shape[-1])
        found = self.teacher_tta.ask(self.teacher.segment, images.tensor)
        finite = [finite_images(outputs) for outputs in found]
        crops = []
        for box in [box for layer in self.teacher_crops.boxes(size)[1][1:] for box in layer]:
            seen = self.teacher_tta.ask(self.teacher.segment, cut(images.tensor, box, size))
            finite += [finite_images(outputs) for outputs in seen]
            crops.append((box, self.teacher_tta.fuse(seen)))
        photo_sizes = [x.get("photo_size", whole) for x, whole in zip(batched_inputs, images.image_sizes)]
        photos = [x["image_weak"].to(self.device) for x in batched_inputs]
        whole = self.teacher_tta.fuse(found)
        targets = self.targets(whole, initial, size, photo_sizes, self.branch_weights, photos, crops)
        if self.observer is not None:
            self.observer(batched_inputs, targets)
        return targets, torch.stack(finite).all(0)

    def _criterion_target(self, target: dict[str, Tensor] | None, padded_size: tuple[int, int]) -> dict[str, Tensor]:
        """Add the image weight: 1, or 0 for an image without initial labels."""
        if target is not None:
            return {**target, "image_weight": torch.ones((), device=self.device)}
        return {
            "labels": torch.zeros(0, dtype=torch.int64, device=self.device),
            "masks": torch.zeros(0, *padded_size, dtype=torch.bool, device=self.device),
            "ancestors": torch.zeros(0, 0, dtype=torch.bool, device=self.device),
            "image_weight": torch.zeros((), device=self.device),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load a checkpoint of one segmenter into both, without missing or unexpected keys.

        Tensors of another shape are logged and skipped, so they count as missing: an error in `load_state_dict`, but
        not in Detectron2's checkpointers, which treat names of the model in the same way.
        """
        inside = [key for key in state_dict if key.startswith(prefix)]
        if not any(key.startswith(f"{prefix}{name}.") for key in inside for name in MODELS):
            own = self.student.state_dict()
            for key in inside:
                value, name = state_dict.pop(key), key[len(prefix) :]
                if name in own and own[name].shape != value.shape:
                    logger.warning(
                        "%s is left out: its shape is %s in the checkpoint and %s in the model",
                        name,
                        tuple(value.shape),
                        tuple(own[name].shape),
                    )
                else:
                    state_dict.update({f"{prefix}{model}.{name}": value for model in MODELS})
        super()._load_from_state_dict(state_dict, prefix, *args)

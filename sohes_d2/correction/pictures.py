"""Pictures of the teacher's pseudo-labels during phase 3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from detectron2.engine import HookBase

from ..structures.forest import Forest
from ..structures.masks import encode_masks
from ..visualization.draw import forest_figure

if TYPE_CHECKING:
    from .meta_arch import SOHESMutualLearning


class DrawTeacherLabels(HookBase):
    """Draws the first image of a batch with the teacher's labels, and its strong view, for TensorBoard.

    It runs on the main process only, in the first iteration and every ``period`` iterations after it.
    """

    def __init__(self, model: SOHESMutualLearning, period: int, image_format: str = "RGB", width: int = 1200):
        """
        Args:
            model: without the wrapper for distributed training.
            period: iterations between two pictures, at least 1.
            image_format: of the model's input, "RGB" or "BGR".
            width: of the figure in pixels.
        """
        self._model = model
        self._period = period
        self._image_format = image_format
        self._width = width
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
            "teacher_labels": forest_figure(weak, forest, "the teacher's labels", self._width),
            "student_view": strong,
        }

    def _picture(self, image: Tensor) -> np.ndarray:
        picture = image.cpu().numpy().transpose(1, 2, 0)
        return picture[..., ::-1] if self._image_format == "BGR" else picture


def forest_of_target(target: Mapping[str, Tensor], image_size: tuple[int, int]) -> Forest:
    """Convert a training target to a forest.

    Args:
        target: "masks" (N, H, W) bool of the padded size, "scores" (N,), and "ancestors" (N, N) bool; without these
            the hierarchy is derived from coverage.
        image_size: (H, W) without the padding.
    """
    masks = encode_masks(target["masks"][:, : image_size[0], : image_size[1]].cpu())
    scores = target["scores"].cpu().numpy()
    if "ancestors" not in target:
        return Forest.from_masks(masks, image_size, scores=scores)
    ancestors = target["ancestors"].cpu().numpy().astype(np.float32)
    return Forest.from_probabilities(masks, ancestors, image_size, theta_cover=0, scores=scores)

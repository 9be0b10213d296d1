"""Training hooks."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch

from detectron2.engine import HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import inference_context
from detectron2.utils import comm

from ..errors import InputError
from ..labels.forests import read_forest
from ..labels.reader import report
from ..labels.schema import Problems, read_annotations
from ..modeling.inference import predicted_forest
from ..structures.forest import Forest
from ..structures.images import read_image
from ..visualization.draw import forest_figure
from .stopping import stopping

logger = logging.getLogger(__name__)

SKIPPED_PERIOD = 20  # iterations between two counts of skipped images, as for the writers
FIGURE_WIDTH = 1200  # pixels


def is_due(trainer: TrainerBase, period: int) -> bool:
    """Whether the iteration that was just done is the last, or the last of a period; 0: no periods."""
    done = trainer.iter + 1
    return done == trainer.max_iter or (period > 0 and done % period == 0)


class Checkpoints(PeriodicCheckpointer):
    """Writes checkpoints periodically and at the end, and stops the training on a signal.

    Attributes:
        unsaved: the last complete iteration if it is not in a checkpoint; None otherwise, and during an iteration.
    """

    unsaved: int | None = None

    def before_step(self) -> None:
        self.unsaved = None
        stopping.begin_iteration()

    def after_step(self) -> None:
        """
        Raises:
            KeyboardInterrupt: a signal arrived during the iteration.
        """
        super().after_step()
        done = self.trainer.iter + 1
        if done % self.period and done < self.trainer.max_iter:
            self.unsaved = self.trainer.iter
        stopping.end_iteration()


class Evaluation(EvalHook):
    """Detectron2's hook, except that it does not evaluate at the end if the last iteration failed."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


class CountSkippedImages(HookBase):
    """Logs "skipped_images": number of broken training images, over all processes, since the start or the resume."""

    def after_step(self) -> None:
        if not is_due(self.trainer, SKIPPED_PERIOD):
            return
        counts = comm.gather(len(self.trainer.data_loader.skipped))
        if comm.is_main_process():
            self.trainer.storage.put_scalar("skipped_images", sum(counts), smoothing_hint=False)


class DrawExamples(HookBase):
    """Draws test images with annotations and predictions for TensorBoard.

    It runs on the main process only, after every ``period`` iterations and after the last.
    """

    def __init__(
        self,
        period: int,
        model: torch.nn.Module,
        load_records: Callable[[], Iterable[Mapping[str, Any]]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        count: int,
    ):
        """
        Args:
            period: iterations between two evaluations; 0: only after training.
            model: without the wrapper for distributed training, since only one process runs this hook.
            load_records: returns Detectron2's dicts of a test set; called once, when first needed.
            mapper: converts such a dict to an input of the model.
            count: number of images to draw, from the start of the set.
        """
        self._period = period
        self._model = model
        self._load_records = load_records
        self._mapper = mapper
        self._count = count
        self._records: list[dict[str, Any]] | None = None

    def after_step(self) -> None:
        if is_due(self.trainer, self._period):
            self._draw()

    def _draw(self) -> None:
        if self._records is None:
            self._records = [dict(record) for record in itertools.islice(self._load_records(), self._count)]
        with inference_context(self._model), torch.no_grad():
            for record in self._records:
                name = os.path.splitext(os.path.basename(record["file_name"]))[0]
                try:
                    inputs, image = self._mapper(dict(record)), read_image(record["file_name"])
                    annotated = annotated_forest(record, image.shape[:2])
                except InputError as error:
                    logger.warning("%s cannot be drawn: %s", record["file_name"], error)
                    continue
                predicted = predicted_forest(self._model([inputs])[0], image.shape[:2])
                self._put(name, "predicted", image, predicted)
                if annotated is not None:
                    self._put(name, "annotated", image, annotated)

    def _put(self, name: str, kind: str, image: np.ndarray, forest: Forest) -> None:
        figure = forest_figure(image, forest, f"{name}, {kind}", FIGURE_WIDTH)
        self.trainer.storage.put_image(f"examples/{name}/{kind}", np.ascontiguousarray(figure.transpose(2, 0, 1)))


def annotated_forest(record: Mapping[str, Any], image_size: tuple[int, int]) -> Forest | None:
    """The forest of a Detectron2 dict's annotations, or None if there are none that can be drawn.

    Args:
        record: its annotations may have ``id`` and ``parent_id``; otherwise the hierarchy is derived from coverage.
        image_size: (H, W).

    Raises:
        InputError: ambiguous ids.
    """
    where, problems = str(record.get("file_name", "")), Problems()
    annotations = read_annotations(record.get("annotations", ()), problems, where)
    forest, _ = read_forest(annotations, image_size, problems, where)
    report(where, problems)
    if not len(forest):
        return None
    if any("parent_id" in annotation for annotation in annotations):
        return forest
    return Forest.from_masks(forest.masks, image_size, scores=forest.scores)

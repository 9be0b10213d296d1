"""Steps from a work unit to lines of a label file; each may run in a different process.

An image that fails in a step is skipped with a reason; the others of its unit continue.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from ..data.sources import ID_STRIDE, MAX_MASKS_PER_IMAGE, ImageItem
from ..errors import ImageReadError
from ..exploration.labeler import PseudoLabeler
from ..labels.writer import dump_line, image_record
from ..structures.entity import Selection
from ..structures.hierarchy import Rules
from ..structures.images import read_image, set_max_image_pixels
from .units import STAGES, ImageResult, UnitResult, WorkUnit, skipped_result

if TYPE_CHECKING:
    from yacs.config import CfgNode


logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


@dataclass
class UnitJob:
    """State of a work unit between the steps, keyed by the image's position in the unit."""

    unit: WorkUnit
    images: dict[int, np.ndarray] = field(default_factory=dict)
    evidence: dict[int, tuple[np.ndarray, ...]] = field(default_factory=dict)
    results: dict[int, ImageResult] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    def skip(self, position: int, step: str, reason: str, trace: str = "") -> None:
        """Remove an image from the unit because a step failed on it."""
        self.results[position] = skipped_result(self.unit.items[position], step, reason, trace)
        self.drop(position)

    def drop(self, position: int) -> None:
        """Free the data of an image."""
        self.images.pop(position, None)
        self.evidence.pop(position, None)

    @contextlib.contextmanager
    def guarded(self, position: int, step: str) -> Iterator[None]:
        """Skip the image if the block raises; one bad image must not stop the run."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - recorded with the image
            self.skip(position, step, *describe_error(error))

    @property
    def complete(self) -> bool:
        return len(self.results) == len(self.unit.items)

    def result(self) -> UnitResult:
        """The result of the complete unit."""
        return UnitResult(self.unit, [self.results[position] for position in sorted(self.results)], self.seconds)

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def label_unit(labeler: Any, unit: WorkUnit) -> UnitResult:
    """Run all steps of a unit in this process; ``labeler`` is a `PseudoLabeler` with extractor."""
    job = UnitJob(unit)
    read_step(job)
    features_step(job, labeler)
    for position in sorted(job.evidence):
        with job.timed("finish"), job.guarded(position, "finish"):
            image, evidence = job.images[position], job.evidence.pop(position)
            job.results[position] = finish_image(labeler, unit.items[position], image, *evidence)
    return job.result()


def read_step(job: UnitJob) -> None:
    """Read the images of a unit."""
    size = None
    with job.timed("read"):
        for position, item in enumerate(job.unit.items):
            with job.guarded(position, "read"):
                image = read_image(item.path)
                if size is not None and image.shape[:2] != size:
                    raise ImageReadError(item.path, f"its header has the size {size}, its pixels {image.shape[:2]}")
                size = image.shape[:2]
                job.images[position] = image


def features_step(job: UnitJob, labeler: Any) -> None:
    """Compute the features of a unit as one batch or, if that fails, image by image, to skip only failing images."""
    threads = single_thread if labeler.extractor.on_host else contextlib.nullcontext
    batches = [sorted(job.images)] if job.images else []
    with job.timed("features"), threads():
        while batches:
            batch = batches.pop(0)
            try:
                job.evidence.update(zip(batch, labeler.evidence([job.images[position] for position in batch])))
            except Exception as error:  # noqa: BLE001 - retried alone, or recorded with the image
                if len(batch) > 1:
                    logger.warning(
                        "features of a batch of %d images failed (%s); retrying one by one", len(batch), error
                    )
                    batches = [[position] for position in batch]
                else:
                    job.skip(batch[0], "features", *describe_error(error))


def finish_image(labeler: Any, item: ImageItem, image: np.ndarray, *evidence: np.ndarray) -> ImageResult:
    """Run the labeler's steps after feature extraction and encode the forest as lines of a label file."""
    with single_thread():
        forest = labeler.finish(image, *evidence)
    if len(forest) > MAX_MASKS_PER_IMAGE:
        raise ValueError(
            f"{len(forest)} masks, more than the {MAX_MASKS_PER_IMAGE} that annotation ids allow; use stricter filters"
        )
    annotations = forest.to_coco(item.image_id, item.image_id * ID_STRIDE + 1)
    lines = [dump_line(image_record(item.image_id, item.file_name, *image.shape[:2]))]
    lines.extend(dump_line(annotation) for annotation in annotations)
    return ImageResult(item.image_id, lines, masks=len(annotations))


def describe_error(error: BaseException) -> tuple[str, str]:
    """Return (reason, traceback) of a failed step; the reason omits memory addresses, which differ between runs."""
    if isinstance(error, ImageReadError):
        return error.reason, ""
    trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return _ADDRESS.sub("", f"{type(error).__name__}: {error}"), trace


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Limit torch and OpenCV to one thread, so that results equal those of the single-threaded workers."""
    torch_threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(torch_threads)
        cv2.setNumThreads(cv_threads)


@dataclass(frozen=True)
class LabelerFactory:
    """Builds the labeler of a config; picklable, for worker processes.

    Attributes:
        cfg: a config with the keys of phase 1.
        selection: which masks are kept.
    """

    cfg: CfgNode
    selection: Selection

    def __call__(self, with_extractor: bool) -> PseudoLabeler:
        """Build a labeler, without extractor and its weights if it only runs the CPU steps."""
        set_max_image_pixels(self.cfg.INPUT.MAX_IMAGE_PIXELS)
        labeler = (
            PseudoLabeler.from_cfg(self.cfg) if with_extractor else PseudoLabeler.from_cfg(self.cfg, extractor=None)
        )
        if self.selection:
            labeler.selection = replace(self.selection, rules=Rules.from_config(self.cfg.EXPLORATION.HIERARCHY))
        return labeler

    def pinned(self, labeler: Any) -> LabelerFactory:
        """A factory with the extractor that ``labeler`` uses; "auto" could resolve differently in another process."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.EXPLORATION.FEATURES.NAME = labeler.extractor.name
        cfg.freeze()
        return replace(self, cfg=cfg)

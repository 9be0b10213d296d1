"""Executors of work units on this machine. Each consumes units lazily and yields results as they complete.

All give the same results; they differ in how work is divided among processes. For clusters, see `ray_executor`.
"""

from __future__ import annotations

import logging
import math
import queue
import time
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..data.sources import ImageItem
from ..errors import SOHESError
from .open_units import OpenUnits, failed_result, lost_reason, unit_names
from .shared_arrays import SharedArrays
from .steps import (
    ImageResult,
    LabelerFactory,
    UnitJob,
    UnitResult,
    features_step,
    finish_image,
    label_unit,
    read_step,
)
from .units import WorkUnit
from .workers import Task, TaskDone, TaskFailed, TaskLost, WorkerPool

logger = logging.getLogger(__name__)

# An image is skipped after this many worker processes have died on it.
_MAX_LOSSES = 2
_READER_THREADS = 4


def run_in_process(units: Iterable[WorkUnit], labeler: Any) -> Generator[UnitResult, None, None]:
    """Run units one after the other in this process."""
    for unit in units:
        yield label_unit(labeler, unit)


def run_on_workers(
    units: Iterable[WorkUnit], make_labeler: LabelerFactory, workers: int
) -> Generator[UnitResult, None, None]:
    """Run whole units in worker processes, for extractors on the CPU.

    If a process dies, its unit is retried image by image; an image on which a second process dies is skipped.
    """
    events: queue.Queue[Any] = queue.Queue()
    units = iter(units)
    open_units = OpenUnits()
    with WorkerPool(workers, make_labeler, True, events) as pool:
        while True:
            while len(open_units) < 2 * workers and (unit := next(units, None)) is not None:
                pool.submit(Task(open_units.add(unit), label_unit, (unit,)))
            if not open_units:
                return
            event = _next_event(events)
            ticket, asked = event.task.key, event.task.args[0]
            if isinstance(event, TaskDone):
                outcome = event.value
            elif isinstance(event, TaskFailed):
                outcome = failed_result(asked, event.reason, event.trace)
            else:
                logger.warning("a worker died (exit code %s) on %s", event.exit_code, unit_names(asked))
                singles = open_units.take_apart(ticket)
                for single in singles:
                    pool.submit(Task(ticket, label_unit, (single,)))
                if singles:
                    continue
                outcome = failed_result(asked, lost_reason(event.exit_code))
            whole = open_units.close(ticket, outcome)
            if whole is not None:
                yield whole


def _next_event(events: queue.Queue) -> Any:
    event = events.get()
    if isinstance(event, SOHESError):
        raise event
    return event


def run_on_device(
    units: Iterable[WorkUnit], labeler: Any, make_labeler: LabelerFactory, workers: int, batch_size: int
) -> Generator[UnitResult, None, None]:
    """Compute features on the device in this process, while workers finish the labels of earlier units.

    Batches are composed as in `label_unit`, so the results are the same.
    """
    with _DevicePipeline(labeler, make_labeler, workers) as pipeline:
        limit = 3 + math.ceil(2 * workers / batch_size)
        units = iter(units)
        in_flight = 0
        while True:
            while in_flight < limit and (unit := next(units, None)) is not None:
                pipeline.start(unit)
                in_flight += 1
            if not in_flight:
                return
            for result in pipeline.step():
                in_flight -= 1
                yield result


class _DevicePipeline:
    """Pipeline of the units in flight: reader threads, a device thread and worker processes report to one queue."""

    def __init__(self, labeler: Any, make_labeler: LabelerFactory, workers: int):
        self._labeler = labeler
        self._events: queue.Queue[Any] = queue.Queue()
        self._readers = ThreadPoolExecutor(_READER_THREADS, "reader")
        self._device = ThreadPoolExecutor(1, "device")
        self._pool = WorkerPool(workers, make_labeler, False, self._events)
        self._shared: dict[tuple[WorkUnit, int], SharedArrays] = {}

    def __enter__(self) -> _DevicePipeline:
        return self

    def __exit__(self, *error: Any) -> None:
        self._readers.shutdown(cancel_futures=True)
        self._device.shutdown(cancel_futures=True)
        self._pool.close()
        for arrays in self._shared.values():
            arrays.unlink()

    def start(self, unit: WorkUnit) -> None:
        """Start reading a unit."""
        job = UnitJob(unit)
        self._then(self._readers, self._read_done, job, read_step, job)

    def step(self) -> list[UnitResult]:
        """Wait for one event and start the next step; return the unit that became complete, if any."""
        event = _next_event(self._events)
        if isinstance(event, TaskDone):
            job = self._task_done(event.task, event.value)
        elif isinstance(event, TaskFailed):
            job = self._task_skipped(event.task, event.reason, event.trace)
        elif isinstance(event, TaskLost):
            job = self._task_lost(event)
        else:
            future, then, job = event
            future.result()  # steps record the errors of images; any other error is a bug and is raised here
            then(job)
        return [UnitResult(job.unit, job.ordered_results(), job.seconds)] if job.complete else []

    def _then(self, executor: ThreadPoolExecutor, then: Any, job: UnitJob, function: Any, *args: Any) -> None:
        future = executor.submit(function, *args)
        future.add_done_callback(lambda done: self._events.put((done, then, job)))

    def _read_done(self, job: UnitJob) -> None:
        if job.images:
            self._then(self._device, self._features_done, job, features_step, job, self._labeler)

    def _features_done(self, job: UnitJob) -> None:
        for position in sorted(job.evidence):
            arrays = SharedArrays.put([job.images[position], *job.evidence[position]])
            job.drop(position)
            self._shared[job.unit, position] = arrays
            self._pool.submit(Task((job, position), finish_task, (job.unit.items[position], arrays)))

    def _task_done(self, task: Task, value: tuple[Any, float]) -> UnitJob:
        job, position = task.key
        job.results[position], seconds = value
        job.seconds["finish"] += seconds
        self._free(job, position)
        return job

    def _task_skipped(self, task: Task, reason: str, trace: str = "") -> UnitJob:
        job, position = task.key
        job.skip(position, "finish", reason, trace)
        self._free(job, position)
        return job

    def _free(self, job: UnitJob, position: int) -> None:
        self._shared.pop((job.unit, position)).unlink()

    def _task_lost(self, event: TaskLost) -> UnitJob:
        job, position = event.task.key
        logger.warning("a worker died (exit code %s) on %a", event.exit_code, job.unit.items[position].file_name)
        if event.task.losses >= _MAX_LOSSES:
            return self._task_skipped(event.task, lost_reason(event.exit_code))
        self._pool.submit(event.task)
        return job


def finish_task(labeler: Any, item: ImageItem, arrays: SharedArrays) -> tuple[ImageResult, float]:
    """Run `finish_image` on an image and its features in shared memory; also return the seconds it took."""
    start = time.perf_counter()
    with arrays.opened() as (image, *evidence):
        result = finish_image(labeler, item, image, *evidence)
        del image, evidence
    return result, time.perf_counter() - start

"""Executors of work units: worker processes, a device with worker processes, a Ray cluster.

Each consumes units lazily and yields results as they complete. All give the same results.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import queue
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from ..data.sources import ImageItem
from ..errors import InputError, SOHESError
from .steps import LabelerFactory, UnitJob, features_step, finish_image, label_unit, read_step
from .units import ImageResult, UnitResult, WorkUnit, failed_result, lost_reason, run_with_retries
from .workers import SharedArrays, Task, TaskDone, TaskFailed, TaskLost, WorkerPool

logger = logging.getLogger(__name__)

# An image is skipped after this many worker processes have died on it.
_MAX_LOSSES = 2
_READER_THREADS = 4

# How often Ray retries a task whose worker or machine is lost, before the unit is retried image by image.
RAY_RETRIES = 3
_UNITS_PER_RAY_CPU = 2


def run_on_workers(
    units: Iterable[WorkUnit], make_labeler: LabelerFactory, workers: int
) -> Generator[UnitResult, None, None]:
    """Run whole units in worker processes, for extractors on the CPU; see `run_with_retries` for dying ones."""
    events: queue.Queue[Any] = queue.Queue()
    with WorkerPool(workers, make_labeler, True, events) as pool:

        def submit(unit: WorkUnit) -> None:
            pool.submit(Task(unit, label_unit, (unit,)))

        def wait() -> tuple[WorkUnit, UnitResult | str]:
            event = _next_event(events)
            unit = event.task.key
            if isinstance(event, TaskDone):
                return unit, event.value
            if isinstance(event, TaskFailed):
                return unit, failed_result(unit, event.reason, event.trace)
            logger.warning("a worker died (exit code %s) on %s", event.exit_code, _names(unit))
            return unit, lost_reason(event.exit_code)

        yield from run_with_retries(units, 2 * workers, submit, wait)


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
            result = pipeline.step()
            if result is not None:
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
        self._run(self._readers, read_step, UnitJob(unit), then=self._start_features)

    def step(self) -> UnitResult | None:
        """Wait for one event and start the next step; return the unit that became complete, if any."""
        event = _next_event(self._events)
        if isinstance(event, (TaskDone, TaskFailed, TaskLost)):
            job = self._end_task(event)
        else:
            future, job, then = event
            future.result()  # steps record the errors of images; any other error is a bug and is raised here
            then(job)
        return job.result() if job.complete else None

    def _run(self, executor: Executor, step: Callable[..., None], job: UnitJob, *args: Any, then: Any) -> None:
        future = executor.submit(step, job, *args)
        future.add_done_callback(lambda done: self._events.put((done, job, then)))

    def _start_features(self, job: UnitJob) -> None:
        if job.images:
            self._run(self._device, features_step, job, self._labeler, then=self._start_tasks)

    def _start_tasks(self, job: UnitJob) -> None:
        for position in sorted(job.evidence):
            arrays = SharedArrays.put([job.images[position], *job.evidence[position]])
            job.drop(position)
            self._shared[job.unit, position] = arrays
            self._pool.submit(Task((job, position), finish_task, (job.unit.items[position], arrays)))

    def _end_task(self, event: TaskDone | TaskFailed | TaskLost) -> UnitJob:
        """Record the result of an image, or run its task again in another process; return the image's unit."""
        job, position = event.task.key
        if isinstance(event, TaskDone):
            job.results[position], seconds = event.value
            job.seconds["finish"] += seconds
        elif isinstance(event, TaskFailed):
            job.skip(position, "finish", event.reason, event.trace)
        else:
            logger.warning("a worker died (exit code %s) on %a", event.exit_code, job.unit.items[position].file_name)
            if event.task.losses < _MAX_LOSSES:
                self._pool.submit(event.task)
                return job
            job.skip(position, "finish", lost_reason(event.exit_code))
        self._shared.pop((job.unit, position)).unlink()
        return job


def finish_task(labeler: Any, item: ImageItem, arrays: SharedArrays) -> tuple[ImageResult, float]:
    """Run `finish_image` on an image and its features in shared memory; also return the seconds it took."""
    start = time.perf_counter()
    with arrays.opened() as (image, *evidence):
        result = finish_image(labeler, item, image, *evidence)
        del image, evidence
    return result, time.perf_counter() - start


def run_on_ray(
    units: Iterable[WorkUnit], make_labeler: LabelerFactory, address: str | None = None, num_gpus: float = 0.0
) -> Generator[UnitResult, None, None]:
    """Run units on a Ray cluster, each as a task with one CPU; units of lost workers are retried.

    Every machine needs this package, and the images at the same paths. Only this process writes files.

    Args:
        units: units to label.
        make_labeler: builds the labeler, once per Ray worker.
        address: a running cluster ("auto", "host:6379", "ray://host:10001"); None starts one on this machine.
        num_gpus: GPUs per task.

    Raises:
        InputError: Ray is not installed.
    """
    try:
        import ray
        from ray import cloudpickle, exceptions
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'sohes_d2[ray]'") from error

    lost = (
        exceptions.WorkerCrashedError,
        exceptions.OutOfMemoryError,
        exceptions.NodeDiedError,
        exceptions.ObjectLostError,
    )
    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports from a cluster started here
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    try:
        remote = ray.remote(_label_remotely).options(num_cpus=1, num_gpus=num_gpus, max_retries=RAY_RETRIES)
        factory = ray.put(cloudpickle.dumps(make_labeler))
        running: dict[Any, WorkUnit] = {}  # by object reference

        def submit(unit: WorkUnit) -> None:
            running[remote.remote(factory, unit)] = unit

        def wait() -> tuple[WorkUnit, UnitResult | str]:
            [ready], _ = ray.wait(list(running), num_returns=1)
            unit = running.pop(ready)
            try:
                return unit, ray.get(ready)
            except lost as error:
                logger.warning("Ray lost the workers (%s) of %s", type(error).__name__, _names(unit))
                return unit, lost_reason(None)

        limit = max(2, int(_UNITS_PER_RAY_CPU * ray.cluster_resources().get("CPU", 1)))
        yield from run_with_retries(units, limit, submit, wait)
    finally:
        if started:
            ray.shutdown()


def _label_remotely(factory: bytes, unit: WorkUnit) -> UnitResult:
    # imported here, because the function is pickled by value, so its globals would be copies
    from sohes_d2.labeling.executors import labeler_of_process

    return label_unit(labeler_of_process(factory), unit)


@functools.lru_cache(maxsize=1)
def labeler_of_process(factory: bytes) -> Any:
    """The labeler of this Ray worker, built on the first call from a pickled factory."""
    from ray import cloudpickle

    return cloudpickle.loads(factory)(True)


def _next_event(events: queue.Queue) -> Any:
    event = events.get()
    if isinstance(event, SOHESError):
        raise event
    return event


def _names(unit: WorkUnit) -> str:
    return ", ".join(ascii(item.file_name) for item in unit.items)

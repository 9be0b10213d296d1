"""Executor of work units on a Ray cluster. Only the driver writes files; units of lost workers are retried."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from typing import Any

from ..errors import InputError
from .open_units import OpenUnits, failed_result, lost_reason, unit_names
from .steps import LabelerFactory, UnitResult, label_unit
from .units import WorkUnit

logger = logging.getLogger(__name__)

# How often Ray retries a task whose worker or machine is lost, before the unit is retried image by image.
MAX_RETRIES = 3
_UNITS_PER_CPU = 2

_labeler: tuple[bytes, Any] | None = None  # set in Ray workers: the pickled factory and its labeler


def run_on_ray(
    units: Iterable[WorkUnit],
    make_labeler: LabelerFactory,
    address: str | None = None,
    num_gpus: float = 0.0,
) -> Generator[UnitResult, None, None]:
    """Run units on a Ray cluster, each as a task with one CPU.

    Every machine needs this package, and the images at the same paths.

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
    except ImportError as error:
        raise InputError("--engine ray needs Ray: pip install 'sohes_d2[ray]'") from error
    from ray import cloudpickle

    started = not ray.is_initialized()
    if started:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage reports from a cluster started here
        ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
    try:
        remote = ray.remote(_label_remotely).options(num_cpus=1, num_gpus=num_gpus, max_retries=MAX_RETRIES)
        factory = ray.put(cloudpickle.dumps(make_labeler))
        limit = max(2, int(_UNITS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
        yield from _run(ray, remote, factory, iter(units), limit)
    finally:
        if started:
            ray.shutdown()


def _run(
    ray: Any, remote: Any, factory: Any, units: Iterator[WorkUnit], limit: int
) -> Generator[UnitResult, None, None]:
    errors = ray.exceptions
    lost = (errors.WorkerCrashedError, errors.OutOfMemoryError, errors.NodeDiedError, errors.ObjectLostError)
    waiting: dict[Any, tuple[int, WorkUnit]] = {}  # object reference -> (ticket, requested unit)
    open_units = OpenUnits()
    while True:
        while len(open_units) < limit and (unit := next(units, None)) is not None:
            waiting[remote.remote(factory, unit)] = (open_units.add(unit), unit)
        if not open_units:
            return
        ready, _ = ray.wait(list(waiting), num_returns=1)
        ticket, asked = waiting.pop(ready[0])
        try:
            outcome = ray.get(ready[0])
        except lost as error:
            logger.warning("Ray lost the workers (%s) of %s", type(error).__name__, unit_names(asked))
            singles = open_units.take_apart(ticket)
            for single in singles:
                waiting[remote.remote(factory, single)] = (ticket, single)
            if singles:
                continue
            outcome = failed_result(asked, lost_reason(None))
        whole = open_units.close(ticket, outcome)
        if whole is not None:
            yield whole


def _label_remotely(factory: bytes, unit: WorkUnit) -> UnitResult:
    """Label a unit in a Ray worker, with the labeler of that process."""
    from sohes_d2.labeling import (
        ray_executor as module,
    )  # the function is pickled by value, so its globals would be copies

    return module.label_here(factory, unit)


def label_here(factory: bytes, unit: WorkUnit) -> UnitResult:
    """Label a unit with the labeler of this process, which is built on the first call."""
    global _labeler
    if _labeler is None or _labeler[0] != factory:
        from ray import cloudpickle

        _labeler = (factory, cloudpickle.loads(factory)(True))
    return label_unit(_labeler[1], unit)

"""Arrays in shared memory: read in another process, and freed."""

from __future__ import annotations

import multiprocessing
import pickle
import queue
from types import SimpleNamespace

import numpy as np
import pytest

from sohes_d2.labeling.shared_arrays import SharedArrays


def arrays() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 256, (5, 7, 3), dtype=np.uint8),
        generator.standard_normal((2, 3, 4)).astype(np.float16),
        np.zeros((0, 4), np.float32),
        generator.standard_normal(3)[::-1],
        np.array(2.5, np.float32),
    ]


def _read(shared: SharedArrays, results) -> None:
    with shared.opened() as found:
        results.put([array.copy() for array in found])


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        np.testing.assert_array_equal(one, other)


def test_arrays_are_read_in_another_process():
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    shared = SharedArrays.put(arrays())
    try:
        process = context.Process(target=_read, args=(shared, results))
        process.start()
        assert_same(results.get(timeout=120), arrays())
        process.join(timeout=60)
    finally:
        shared.unlink()


def test_reading_leaves_the_block_and_unlink_frees_it():
    given = arrays()
    shared = pickle.loads(pickle.dumps(SharedArrays.put(given)))
    given[0][:] = 0  # the block has a copy
    for _ in range(2):
        with shared.opened() as found:
            assert_same(found, arrays())
            del found[:]
    with pytest.raises(KeyError), shared.opened() as (first, *_):  # an error that references a view is passed on
        raise KeyError(first)
    shared.unlink()
    with pytest.raises(FileNotFoundError), shared.opened():
        pass
    shared.unlink()  # does nothing


def test_arrays_start_at_multiples_of_64_bytes_and_may_be_none():
    shared = SharedArrays.put(arrays())
    try:
        assert all(offset % 64 == 0 for offset, *_ in shared.layout)
    finally:
        shared.unlink()
    empty = SharedArrays.put([])
    with empty.opened() as found:
        assert found == []
    empty.unlink()


def test_a_task_that_lost_two_processes_is_skipped_and_its_block_freed():
    from sohes_d2.data.sources import ImageItem
    from sohes_d2.labeling.executors import _DevicePipeline
    from sohes_d2.labeling.steps import UnitJob
    from sohes_d2.labeling.units import WorkUnit
    from sohes_d2.labeling.workers import Task, TaskLost

    item = ImageItem(1, "a.png", "a.png")
    job = UnitJob(WorkUnit(0, 0, (item,)))
    shared = SharedArrays.put(arrays())
    submitted = []
    pipeline = _DevicePipeline.__new__(_DevicePipeline)
    pipeline._events, pipeline._pool = queue.Queue(), SimpleNamespace(submit=submitted.append)
    pipeline._shared = {(job.unit, 0): shared}
    task = Task((job, 0), None, (item, shared))
    for losses in (1, 2):
        task.losses = losses
        pipeline._events.put(TaskLost(task, -9))
        results = pipeline.step()
        if losses == 1:
            assert results == []
            with shared.opened():
                pass
    assert submitted == [task]
    assert "killed every time" in results[0].results[0].skipped["reason"]
    assert pipeline._shared == {}
    with pytest.raises(FileNotFoundError), shared.opened():
        pass

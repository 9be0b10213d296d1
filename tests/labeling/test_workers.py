"""Arrays in shared memory: read in another process, and freed."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest

from sohes_d2.labeling.workers import SharedArrays


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

"""Pool of worker processes, which replaces dead workers, and arrays in memory that they share."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np

from ..errors import SOHESError
from .steps import LabelerFactory, describe_error

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# The run fails after a worker process has failed to start this many times in a row.
_MAX_FAILED_STARTS = 3
_ALIGNMENT = 64  # of shared arrays, in bytes


@dataclass
class Task:
    """A call `function(labeler, *args)` for a worker. ``key`` identifies it to the caller."""

    key: Any
    function: Callable[..., Any]
    args: tuple[Any, ...]
    losses: int = 0


@dataclass
class TaskDone:
    """Return value of a task."""

    task: Task
    value: Any


@dataclass
class TaskFailed:
    """A task raised an exception."""

    task: Task
    reason: str
    trace: str


@dataclass
class TaskLost:
    """The process that ran a task died; counted in ``task.losses``."""

    task: Task
    exit_code: int | None


class WorkerPool:
    """Pool of single-threaded processes that run tasks, with one labeler each.

    Each worker has a thread in this process that holds its pipe, so that a worker's death is attributed to its task,
    and workers exit if this process is killed. Results arrive in ``events`` as TaskDone, TaskFailed, TaskLost or
    SOHESError.
    """

    def __init__(self, count: int, make_labeler: LabelerFactory, with_extractor: bool, events: queue.Queue):
        self._make_labeler = make_labeler
        self._with_extractor = with_extractor
        self._events = events
        self._tasks: queue.Queue[Task | None] = queue.Queue()
        self._starting = threading.Lock()  # os.environ is changed while a process starts
        self._closing = False
        self._processes: dict[int, multiprocessing.process.BaseProcess] = {}
        self._context = _context()
        self._threads = [threading.Thread(target=self._serve, args=(slot,), daemon=True) for slot in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, task: Task) -> None:
        """Queue a task. The queue is unbounded."""
        self._tasks.put(task)

    def close(self) -> None:
        """Stop immediately: drop unfinished tasks and terminate the processes."""
        self._closing = True
        for _ in self._threads:
            self._tasks.put(None)
        with self._starting:  # a process being started is either in the dict already or will not start
            for process in self._processes.values():
                process.terminate()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _serve(self, slot: int) -> None:
        """Target of the thread of one worker: start the worker, send it tasks, replace it when it dies."""
        connection = None
        failed_starts = 0
        while not self._closing:
            if connection is None:
                try:
                    connection = self._start(slot)
                    failed_starts = 0
                except (EOFError, OSError):
                    failed_starts += 1
                    if failed_starts == _MAX_FAILED_STARTS and not self._closing:
                        code = getattr(self._processes.get(slot), "exitcode", None)
                        self._events.put(SOHESError(f"worker processes die while starting (exit code {code})"))
                        return
                    continue
                except SOHESError as error:
                    self._events.put(error)
                    return
            task = self._tasks.get()
            if task is None:
                break
            try:
                connection.send((task.function, task.args))
                kind, *reply = connection.recv()
            except (EOFError, OSError):
                connection.close()
                connection = None
                process = self._processes[slot]
                process.join()
                task.losses += 1
                self._events.put(TaskLost(task, process.exitcode))
                continue
            self._events.put(TaskDone(task, *reply) if kind == "done" else TaskFailed(task, *reply))
        if connection is not None:
            connection.close()
        if slot in self._processes:
            self._processes[slot].join()

    def _start(self, slot: int) -> Connection:
        """Start a worker process and wait for its labeler.

        Raises:
            EOFError, OSError: the process died, or the pool is being closed.
            SOHESError: the labeler cannot be built.
        """
        connection, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_worker_main,
            args=(worker_end, self._make_labeler, self._with_extractor),
            daemon=True,
            name=f"labeler-{slot}",
        )
        with self._starting, _single_threaded_children():
            if self._closing:
                raise EOFError
            process.start()
            self._processes[slot] = process
        worker_end.close()
        try:
            kind, *reply = connection.recv()
        except (EOFError, OSError):
            connection.close()
            process.join()
            raise
        if kind != "ready":
            connection.close()
            raise SOHESError(f"a worker process cannot build its labeler: {reply[0]}\n{reply[1]}")
        return connection


def _worker_main(connection: Connection, make_labeler: LabelerFactory, with_extractor: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is sent to the whole process group; the parent handles it
    try:
        import cv2
        import torch

        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        labeler = make_labeler(with_extractor)
        connection.send(("ready",))
    except Exception as error:  # noqa: BLE001 - reported to the parent, which stops the run
        connection.send(("broken", *describe_error(error)))
        return
    while True:
        try:
            function, args = connection.recv()
        except (EOFError, OSError):
            return  # the parent has exited or closed the pool
        try:
            reply: tuple[str, ...] = ("done", function(labeler, *args))
        except Exception as error:  # noqa: BLE001 - reported to the parent with its traceback
            reply = ("failed", *describe_error(error))
        del function, args
        try:
            connection.send(reply)
        except OSError:
            return


def _context() -> Any:
    """Multiprocessing context: fork from a server process without threads or device state, if available."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sohes_d2.labeling.steps", "sohes_d2.exploration.labeler"])
    return context


@contextlib.contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Set the thread counts in the environment of child processes; libraries read them when they are loaded."""
    before = {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    try:
        yield
    finally:
        for name in _THREAD_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


@dataclass(frozen=True)
class SharedArrays:
    """A block of shared memory with arrays; pickled as its name and layout.

    Attributes:
        name: name of the block.
        layout: offset in bytes, shape and dtype of each array.
    """

    name: str
    layout: tuple[tuple[int, tuple[int, ...], str], ...]

    @classmethod
    def put(cls, arrays: Sequence[np.ndarray]) -> SharedArrays:
        """Copy arrays into a new block, which exists until `unlink`."""
        layout, end = [], 0
        for array in arrays:
            layout.append((end, array.shape, array.dtype.str))
            end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        block = SharedMemory(create=True, size=max(1, end))
        for array, view in zip(arrays, _views(block, layout)):
            view[...] = array
        block.close()
        return cls(block.name, tuple(layout))

    @contextlib.contextmanager
    def opened(self) -> Iterator[list[np.ndarray]]:
        """Context manager that yields the arrays; they are valid only inside it."""
        block = SharedMemory(name=self.name)
        views = _views(block, self.layout)
        try:
            yield views
        finally:
            views.clear()
            with contextlib.suppress(BufferError):  # a propagating exception may still hold a view
                block.close()

    def unlink(self) -> None:
        """Free the block; does nothing if it is already freed."""
        with contextlib.suppress(FileNotFoundError):
            block = SharedMemory(name=self.name)
            block.close()
            block.unlink()


def _views(block: SharedMemory, layout: Sequence[tuple[int, tuple[int, ...], str]]) -> list[np.ndarray]:
    return [np.ndarray(shape, dtype, buffer=block.buf, offset=offset) for offset, shape, dtype in layout]

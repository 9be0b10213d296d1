"""Starts, monitors and ends the processes of a distributed training, on GPUs or on the CPU."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from detectron2.utils import comm

from .. import errors
from ..errors import ConfigError, SOHESError
from .stopping import SIGNALS, stopping

TIMEOUT = timedelta(minutes=30)  # of communication between processes
_JOIN_TIMEOUT = timedelta(minutes=10)  # until all processes of all machines have connected
_REACH_TIMEOUT = 45.0  # seconds within which machine 0 must respond, even if only by refusing the connection
_STORE_TIMEOUT = 30.0  # seconds within which machine 0's store must answer, including the import of torch
_ANSWER_TIMEOUT = 60.0  # seconds within which the first process must acknowledge a signal
_CAUSE_TIMEOUT = 1.0  # seconds to wait for the death of a process that caused another one's error


class RemoteTraceback(Exception):
    """Traceback of an exception from another process, set as its cause."""


def launch(
    function: Callable[..., None],
    processes: int,
    machines: int = 1,
    machine_rank: int = 0,
    address: str = "auto",
    args: tuple[Any, ...] = (),
    use_gpus: bool = True,
) -> None:
    """Call ``function(*args)`` in ``processes`` processes on each machine, connected as Detectron2's `comm` expects.

    It raises the error of the process that failed first. SIGINT and SIGTERM, here or to the group, end all processes
    after the first one has finished and saved its iteration (see `sohes_d2.engine.stopping`); a second signal ends
    them at once.

    Args:
        function: can be pickled; with one process on one machine it is called directly.
        processes: number on this machine; with GPUs, one per GPU.
        machines: number of machines.
        machine_rank: index of this machine, from 0.
        address: "tcp://HOST:PORT" of machine 0, or "auto" with one machine.
        args: arguments of the function.
        use_gpus: True: NCCL, one GPU per process; False: gloo on the CPU.

    Raises:
        ConfigError: an address that is invalid or cannot be reached, or fewer GPUs than processes.
        SOHESError: a process was killed.
        KeyboardInterrupt: stopped by a signal.
        SystemExit: a process called ``sys.exit`` with a number other than 0.
        Exception: the error of the function, with its traceback in that process as the cause.
    """
    if machines * processes == 1:
        with stopping.on_signals():
            function(*args)
        return
    if use_gpus and processes > torch.cuda.device_count():
        raise ConfigError(f"--num-gpus {processes}: this machine has {torch.cuda.device_count()}")
    with _rendezvous(address, machines, machine_rank) as place:
        job = _Job(function, args, processes, machines, machine_rank, place, use_gpus)
        _Ranks(job).run()


@dataclass(frozen=True)
class _Job:
    function: Callable[..., None]
    args: tuple[Any, ...]
    processes: int
    machines: int
    machine_rank: int
    place: tuple[str, int]
    use_gpus: bool


@contextmanager
def _rendezvous(address: str, machines: int, machine_rank: int) -> Iterator[tuple[str, int]]:
    """Host and port of the store through which the processes connect; machine 0 hosts it."""
    if address == "auto":
        if machines > 1:
            raise ConfigError("--dist-url auto is for one machine; give all the tcp://HOST:PORT of machine 0")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        yield "127.0.0.1", store.port
        return
    host, port = _parsed(address)
    try:
        socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--dist-url {address}: no host of this name is known ({error.strerror})") from error
    if machine_rank > 0:
        _reach(host, port, address)
        _check_store(host, port, address)
        yield host, port
        return
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    except (RuntimeError, OSError) as error:
        reason = "it is in use" if "EADDRINUSE" in str(error) or "in use" in str(error) else str(error).split("\n")[0]
        raise ConfigError(f"--dist-url {address}: port {port} cannot be opened here: {reason}") from error
    yield "127.0.0.1", store.port


def _parsed(address: str) -> tuple[str, int]:
    parts = urlsplit(address)
    with suppress(ValueError):
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    raise ConfigError(f"--dist-url {address!r} is neither tcp://HOST:PORT nor auto")


def _reach(host: str, port: int, address: str) -> None:
    """Wait until machine 0 accepts connections; the timeout is longer if its host responds."""
    start, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except ConnectionRefusedError as error:
            reason: OSError = error
            limit = _JOIN_TIMEOUT.total_seconds()
        except OSError as error:
            reason, limit = error, float(_REACH_TIMEOUT)
        if time.monotonic() - start > limit:
            raise ConfigError(f"--dist-url {address}: machine 0 cannot be reached ({reason})") from reason
        if not told:
            print(f"Waiting for machine 0 at {address} ({reason})", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.5)


def _check_store(host: str, port: int, address: str) -> None:
    """Check that the listener is machine 0. Runs in a separate process, since torch waits forever for an answer and
    prints long errors about a wrong one.
    """
    code = "import sys, torch.distributed as d; d.TCPStore(sys.argv[1], int(sys.argv[2]), is_master=False)"
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code, host, str(port)], capture_output=True, check=False, timeout=_STORE_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        ended = None
    if ended is None or ended.returncode:
        how = "does not answer" if ended is None else "answers otherwise than machine 0 would"
        raise ConfigError(
            f"--dist-url {address}: what listens there {how}; is it the port that machine 0 of this training was given?"
        )


@dataclass
class _Ranks:
    """The processes of this machine."""

    job: _Job
    processes: list[Any] = field(default_factory=list)
    reports: list[Connection] = field(default_factory=list)
    asked_at: float | None = None
    answered: bool = False

    def run(self) -> None:
        context = multiprocessing.get_context("spawn")
        try:
            with self._on_signals(context):
                self._watch()
        finally:
            for process in self.processes:
                process.kill()
            for process in self.processes:
                process.join()

    @contextmanager
    def _on_signals(self, context: Any) -> Iterator[None]:
        # Signals are blocked while processes start, which inherit this, so that none misses one or prints a traceback.
        resource_tracker.ensure_running()  # otherwise the first process starts it, which unblocks signals
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._ask) for number in SIGNALS} if main else {}
        try:
            for rank in range(self.job.processes):
                receive, send = context.Pipe(duplex=False)
                process = context.Process(target=_rank, args=(rank, self.job, send))
                process.start()
                send.close()
                self.processes.append(process)
                self.reports.append(receive)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        """Request the first process to stop; the others follow it."""
        again = self.asked_at is not None and time.monotonic() - self.asked_at > 2
        if again or self.job.machine_rank > 0 or not self.processes:
            raise KeyboardInterrupt
        if self.asked_at is None:
            self.asked_at = time.monotonic()
            with suppress(ProcessLookupError):
                os.kill(self.processes[0].pid, number)

    def _watch(self) -> None:
        left = set(range(self.job.processes))
        while left:
            wait([self.processes[rank].sentinel for rank in left] + [self.reports[rank] for rank in left], timeout=1.0)
            for rank in sorted(left):
                ended = self.processes[rank].exitcode is not None
                kind, content = self._report(rank)
                if kind == "stopping":
                    self.answered = True
                elif kind == "done":
                    left.discard(rank)
                elif kind is not None:
                    self._raise(rank, kind, content)
                elif ended:
                    self._raise_death(rank)
            if self.asked_at and not self.answered and time.monotonic() - self.asked_at > _ANSWER_TIMEOUT:
                raise KeyboardInterrupt
        for process in self.processes:
            process.join()

    def _report(self, rank: int) -> tuple[str | None, Any]:
        try:
            if self.reports[rank].poll():
                return self.reports[rank].recv()
        except (EOFError, OSError):
            pass  # it ended without a report
        return None, None

    def _raise(self, rank: int, kind: str, content: Any) -> NoReturn:
        if kind == "stopped":
            raise KeyboardInterrupt
        if kind == "exit":
            raise SystemExit(content)
        # If a process dies, the others fail with connection errors, which need no report.
        end = time.monotonic() + _CAUSE_TIMEOUT
        while time.monotonic() < end:
            for other, process in enumerate(self.processes):
                if other != rank and process.exitcode is not None and process.exitcode < 0:
                    self._raise_death(other)
            time.sleep(0.05)
        error, trace = content
        raise error from RemoteTraceback(f"in process {self._name(rank)}:\n{trace}")

    def _raise_death(self, rank: int) -> NoReturn:
        if self.asked_at is not None and rank == 0:
            raise KeyboardInterrupt
        code = self.processes[rank].exitcode
        how = f"ended with exit code {code}"
        if code < 0:
            with suppress(ValueError):
                code = signal.Signals(-code).name
            how = f"was killed by {code}"
            if code == "SIGKILL":
                how += " (as the system does where memory runs out)"
        raise SOHESError(f"process {self._name(rank)} {how}; the others were stopped. Continue with --resume")

    def _name(self, rank: int) -> str:
        first = self.job.machine_rank * self.job.processes
        return f"{first + rank} of {self.job.machines * self.job.processes} (from 0)"


def _rank(local_rank: int, job: _Job, report: Connection) -> NoReturn:
    """Main function of a process."""
    _end_with_parent()
    first = job.machine_rank == 0 and local_rank == 0
    if not first:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    outcome: tuple[str, Any] = ("done", None)
    code = 0
    try:
        with stopping.on_signals(lambda: report.send(("stopping", None))) if first else nullcontext():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            _join(local_rank, job)
            job.function(*job.args)
            comm.synchronize()  # no process ends while another still communicates with it
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        outcome = ("exit", code) if code else outcome
    except KeyboardInterrupt:
        outcome = ("stopped", None)
    except BaseException as error:
        outcome, code = ("error", (_portable(error), traceback.format_exc())), 1
    # Skip the normal exit, during which a gloo thread that frees a tensor would abort the process.
    with suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    with suppress(OSError):
        report.send(outcome)
    os._exit(code)


def _end_with_parent() -> None:
    """End this process when its parent ends for any reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _join(local_rank: int, job: _Job) -> None:
    """Connect this process with all others, and with those of its machine."""
    size, rank = job.machines * job.processes, job.machine_rank * job.processes + local_rank
    store = dist.TCPStore(*job.place, is_master=False, timeout=_JOIN_TIMEOUT)
    if store.add("joined", 1) == size:
        store.set("all", "")
    try:
        store.wait(["all"], _JOIN_TIMEOUT)
    except RuntimeError as error:
        raise ConfigError(
            f"only {store.add('joined', 0)} of {size} processes connected within {_JOIN_TIMEOUT}; start the command on "
            "each of the --num-machines with its own --machine-rank"
        ) from error
    if job.use_gpus:
        torch.cuda.set_device(local_rank)
    backend = "nccl" if job.use_gpus else "gloo"
    dist.init_process_group(backend, store=store, world_size=size, rank=rank, timeout=TIMEOUT)
    # As in Detectron2's launch, for comm.get_local_rank(). Every process must create every group.
    for machine in range(job.machines):
        group = dist.new_group(list(range(machine * job.processes, (machine + 1) * job.processes)))
        if machine == job.machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    if not job.use_gpus:
        torch.set_num_threads(max(1, torch.get_num_threads() // job.processes))
    comm.synchronize()


def _portable(error: BaseException) -> BaseException:
    """The error if it can be pickled, else a RuntimeError with the same message."""
    try:
        again = pickle.loads(pickle.dumps(error))
        if type(again) is type(error) and str(again) == str(error):
            return error
    except Exception:  # noqa: BLE001 - whatever its __init__ or __reduce__ raises
        pass
    for base in type(error).__mro__:
        if base.__module__ == errors.__name__:
            return base(str(error))
    return RuntimeError(f"{type(error).__name__}: {error}")

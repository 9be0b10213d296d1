"""Start as many processes as there are devices; on the CPU, too."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import launch as launch_on_gpus
from detectron2.utils import comm

TIMEOUT = timedelta(minutes=30)


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

    Args:
        function: can be pickled; with one process on one machine it is simply called.
        processes: on this machine; with GPUs, one for each.
        machines: in all.
        machine_rank: of this machine, from 0.
        address: "tcp://HOST:PORT" of machine 0, or "auto" with one machine.
        args: of the function.
        use_gpus: Detectron2's own launch (NCCL); otherwise processes on the CPU (gloo), which only one of the two
            Detectron2 code bases can start itself.

    Raises:
        torch.multiprocessing.ProcessExitedException: a process called ``sys.exit``, with a number; it is ``exit_code``.
        torch.multiprocessing.ProcessRaisedException: a process raised; the message has the traceback.
    """
    world_size = machines * processes
    if world_size == 1:
        launch_on_gpus(function, processes, machines, machine_rank, address, args)
        return
    if use_gpus:
        launch_on_gpus(_call_and_leave, processes, machines, machine_rank, address, (function, args))
        return
    if address == "auto":
        address = f"tcp://127.0.0.1:{_free_port()}"
    mp.start_processes(_cpu_worker, nprocs=processes, args=(function, processes, machines, machine_rank, address, args))


def _cpu_worker(
    local_rank: int,
    function: Callable[..., None],
    processes: int,
    machines: int,
    machine_rank: int,
    address: str,
    args: tuple[Any, ...],
) -> NoReturn:
    dist.init_process_group(
        "gloo",
        init_method=address,
        world_size=machines * processes,
        rank=machine_rank * processes + local_rank,
        timeout=TIMEOUT,
    )
    # What Detectron2's launch does; comm.get_local_rank() needs it. Every process must create every group.
    for machine in range(machines):
        group = dist.new_group(list(range(machine * processes, (machine + 1) * processes)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    _call_and_leave(function, args)


def _call_and_leave(function: Callable[..., None], args: tuple[Any, ...]) -> NoReturn:
    """Call ``function(*args)`` in this process, one of several, and end the process with its exit code."""
    code = 0
    try:
        function(*args)
        comm.synchronize()  # no process ends while another still talks to it
    except SystemExit as end:
        code = end.code or 0
    # Not by the interpreter's own end: a thread of gloo that lets go of a tensor meanwhile aborts the process.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]

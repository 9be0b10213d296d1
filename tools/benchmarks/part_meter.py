"""Time and peak memory of parts of a program, on the CPU and on CUDA devices; imported by the benchmarks."""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

MIB = 2**20


class PeakMemory:
    """Peak memory since `start`: tensors on a CUDA device, or resident memory of the process (Linux)."""

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self._on_cuda = self._device.type == "cuda"
        self._start = 0.0

    def start(self) -> None:
        """Set the baseline to the memory in use now."""
        if not self._on_cuda and sys.platform == "linux":
            # Freed memory that is still resident would hide later use. Only glibc can return it to the system.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
        self.reset_peak()
        self._start = torch.cuda.memory_allocated(self._device) if self._on_cuda else _resident("VmRSS")

    def reset_peak(self) -> None:
        """Reset the peak, not the baseline."""
        if self._on_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        elif sys.platform == "linux":
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")

    def added(self) -> float:
        """Bytes at the peak minus those at the start; NaN if the system does not report them."""
        peak = torch.cuda.max_memory_allocated(self._device) if self._on_cuda else _resident("VmHWM")
        return max(peak - self._start, 0.0)  # in this order, NaN stays NaN


def _resident(field: str) -> float:
    if sys.platform != "linux":
        return float("nan")
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


class PartMeter:
    """Measures the seconds of parts over several rounds, and their peak memory in an additional round.

    Time and memory are measured in different rounds, because returning freed memory to the system takes time.
    """

    def __init__(self, device: str | torch.device):
        self._device = torch.device(device)
        self._memory = PeakMemory(device)
        self._measures_memory = False
        self._round: dict[str, float] = {}
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self.peaks: dict[str, float] = {}

    @contextmanager
    def round(self, memory: bool = False) -> Iterator[None]:
        """One pass over all parts, measuring either memory or time."""
        self._round = defaultdict(float)
        self._measures_memory = memory
        if memory:
            self._memory.start()
        yield
        if not memory:
            for name, seconds in self._round.items():
                self._seconds[name].append(seconds)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """One part of a round; repeated parts are summed. A nested part counts in the outer one, too."""
        if self._measures_memory:
            self._memory.reset_peak()
        start = self.now()
        yield
        self._round[name] += self.now() - start
        if self._measures_memory:
            self.peaks[name] = max(self._memory.added(), self.peaks.get(name, 0.0))

    def now(self) -> float:
        """Seconds, after synchronizing the device."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        """Add seconds measured elsewhere, or subtract them if negative."""
        self._round[name] += seconds

    @property
    def parts(self) -> list[str]:
        """Names in the order in which they first ended."""
        return list(self._seconds)

    def seconds(self, *names: str) -> float:
        """Median over the rounds of the sum of these parts."""
        return statistics.median(map(sum, zip(*(self._seconds[name] for name in names))))

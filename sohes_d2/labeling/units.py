"""Work units: which images are processed together, their results, and the retries of units whose workers die."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..data.sources import ImageItem
from ..errors import ImageReadError
from ..labels.shards import MAX_IMAGES_PER_SHARD
from ..labels.writer import dump_line
from ..structures.images import image_size

STAGES = ("read", "features", "finish", "write")

# Largest number of pixels of a unit of several images; bounds the memory of a batch.
MAX_UNIT_PIXELS = 32 * 1024 * 1024
_HEADER_READERS = 8


@dataclass(frozen=True)
class WorkUnit:
    """Images of one shard and one size, processed as one batch and journaled together.

    Results on a device may depend on the batch, so a unit's composition must not depend on which images are done.
    """

    shard: int
    number: int
    items: tuple[ImageItem, ...]


@dataclass
class ImageResult:
    """Result of one image.

    Attributes:
        image_id: id of the image.
        lines: the image record and its annotations, or a single `skipped` record, as json lines.
        masks: number of annotations.
        skipped: the `skipped` record (id, file_name, step, reason), or None.
        trace: the traceback of an unexpected error, for the log.
    """

    image_id: int
    lines: list[bytes]
    masks: int = 0
    skipped: dict[str, Any] | None = None
    trace: str = ""


@dataclass
class UnitResult:
    """A finished unit: results of its images in order, and seconds per stage."""

    unit: WorkUnit
    results: list[ImageResult]
    seconds: dict[str, float]


@dataclass(frozen=True)
class ShardLayout:
    """Division of an image list into shard files, and the shards of one job of `--shard I/N`."""

    images: int
    images_per_shard: int
    job: int = 0
    jobs: int = 1

    @classmethod
    def plan(cls, images: int, job: int = 0, jobs: int = 1, limit: int = MAX_IMAGES_PER_SHARD) -> ShardLayout:
        """Plan shards of at most ``limit`` images, small enough that each of ``jobs`` jobs gets one."""
        return cls(images, max(1, min(limit, math.ceil(images / jobs))), job, jobs)

    @property
    def shards(self) -> int:
        """Number of shard files of the whole list."""
        return math.ceil(self.images / self.images_per_shard)

    def own_shards(self) -> range:
        """The shards of this job; the jobs' shards are disjoint and cover all."""
        return range(self.job, self.shards, self.jobs)

    def positions(self, shard: int) -> range:
        """Positions of a shard's images in the image list."""
        start = shard * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.images))

    def describe(self) -> dict[str, int]:
        """Settings that must be equal for all jobs of an output and for a resumed run."""
        return {"images": self.images, "images_per_shard": self.images_per_shard, "shards": self.shards}


def plan_units(items: Sequence[ImageItem], shard: int, batch_size: int) -> list[WorkUnit]:
    """Plan the units of a shard: images of one size, in list order, in groups of at most ``batch_size``.

    Only headers are read. An image with an unreadable header gets its own unit, whose result reports the error.
    """
    if batch_size == 1:
        return [WorkUnit(shard, number, (item,)) for number, item in enumerate(items)]
    with ThreadPoolExecutor(_HEADER_READERS) as pool:
        sizes = list(pool.map(_size_or_none, items))
    batches: list[list[ImageItem]] = []
    last: dict[tuple[int, int] | None, list[ImageItem]] = {}  # size -> its last batch
    for item, size in zip(items, sizes):
        limit = 1 if size is None else max(1, min(batch_size, MAX_UNIT_PIXELS // max(1, size[0] * size[1])))
        if size not in last or len(last[size]) >= limit:
            last[size] = []
            batches.append(last[size])
        last[size].append(item)
    return [WorkUnit(shard, number, tuple(batch)) for number, batch in enumerate(batches)]


def _size_or_none(item: ImageItem) -> tuple[int, int] | None:
    try:
        return image_size(item.path)
    except ImageReadError:
        return None


def skipped_result(item: ImageItem, step: str, reason: str, trace: str = "") -> ImageResult:
    """Result of an image that has no labels because ``step`` failed."""
    record = {"id": item.image_id, "file_name": item.file_name, "step": step, "reason": reason}
    return ImageResult(item.image_id, [dump_line(record)], skipped=record, trace=trace)


def failed_result(unit: WorkUnit, reason: str, trace: str = "") -> UnitResult:
    """Result of a unit whose worker failed or died: all its images are skipped."""
    results = [skipped_result(item, "worker", reason, trace) for item in unit.items]
    return UnitResult(unit, results, dict.fromkeys(STAGES, 0.0))


def lost_reason(exit_code: int | None) -> str:
    """The reason recorded for an image whose worker process dies on every attempt."""
    if exit_code == -9:
        return "its worker process was killed every time, as the system does when memory runs out"
    return "its worker process died every time" + ("" if exit_code is None else f" (exit code {exit_code})")


def run_with_retries(
    units: Iterable[WorkUnit],
    limit: int,
    submit: Callable[[WorkUnit], None],
    wait: Callable[[], tuple[WorkUnit, UnitResult | str]],
) -> Generator[UnitResult, None, None]:
    """Run units in workers that may die; yield results as they complete.

    A lost unit is submitted again image by image, and its results are joined. An image that is lost again is skipped.

    Args:
        units: units to run, consumed lazily.
        limit: maximum number of units in flight.
        submit: starts a unit, or one image of it as a unit with the same number.
        wait: waits for a submitted unit; returns it with its result or, if its worker died, the reason to record.
    """
    units = iter(units)
    in_flight: dict[tuple[int, int], WorkUnit] = {}
    parts: dict[tuple[int, int], list[UnitResult]] = {}  # of lost units: results of single images
    while True:
        while len(in_flight) < limit and (unit := next(units, None)) is not None:
            in_flight[unit.shard, unit.number] = unit
            submit(unit)
        if not in_flight:
            return
        submitted, outcome = wait()
        key = submitted.shard, submitted.number
        if isinstance(outcome, str):
            if key not in parts:
                parts[key] = []
                for item in submitted.items:
                    submit(WorkUnit(*key, (item,)))
                continue
            outcome = failed_result(submitted, outcome)
        if key in parts:
            parts[key].append(outcome)
            if len(parts[key]) < len(in_flight[key].items):
                continue
            outcome = _joined(in_flight[key], parts.pop(key))
        del in_flight[key]
        yield outcome


def _joined(unit: WorkUnit, parts: list[UnitResult]) -> UnitResult:
    by_id = {result.image_id: result for part in parts for result in part.results}
    seconds = {stage: sum(part.seconds[stage] for part in parts) for stage in STAGES}
    return UnitResult(unit, [by_id[item.image_id] for item in unit.items], seconds)

"""Work units: which images are processed together, planned from the image list alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..data.sources import ImageItem, ImageList
from ..errors import ImageReadError
from ..labels.shards import MAX_IMAGES_PER_SHARD
from ..structures.images import image_size

# Largest number of pixels of a unit; bounds the memory of a batch.
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


def plan_units(images: ImageList, layout: ShardLayout, shard: int, batch_size: int) -> list[WorkUnit]:
    """Plan the units of a shard: images of one size in list order, in groups of at most ``batch_size``.

    Only headers are read. An image with an unreadable header gets its own unit, whose result reports the error.
    """
    items = [images[position] for position in layout.positions(shard)]
    if batch_size == 1:
        return [WorkUnit(shard, number, (item,)) for number, item in enumerate(items)]
    with ThreadPoolExecutor(_HEADER_READERS) as pool:
        sizes = list(pool.map(_size_or_none, items))
    batches: list[list[ImageItem]] = []
    open_batches: dict[tuple[int, int], list[ImageItem]] = {}
    for item, size in zip(items, sizes):
        limit = 1 if size is None else max(1, min(batch_size, MAX_UNIT_PIXELS // max(1, size[0] * size[1])))
        batch = None if size is None else open_batches.get(size)
        if batch is None or len(batch) >= limit:
            batch = []
            batches.append(batch)
            if size is not None:
                open_batches[size] = batch
        batch.append(item)
    return [WorkUnit(shard, number, tuple(batch)) for number, batch in enumerate(batches)]


def remaining_units(units: Sequence[WorkUnit], done: Collection[int]) -> Iterator[WorkUnit]:
    """Units whose images are not in ``done`` (ids)."""
    return (unit for unit in units if not all(item.image_id in done for item in unit.items))


def _size_or_none(item: ImageItem) -> tuple[int, int] | None:
    try:
        return image_size(item.path)
    except ImageReadError:
        return None

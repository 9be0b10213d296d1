#!/usr/bin/env python
"""Measure how fast a folder of shards opens and reads as a Detectron2 data set, compared with `load_coco_json`.

    python tools/benchmarks/benchmark_loading.py /data/benchmark  # 200,000 images x 100 masks, about 6 GB
    python tools/benchmarks/benchmark_loading.py /data/benchmark --images 20000 --keep

Writes two sets of labels with small masks to the folder: a large one, which is opened and read at random positions, and
a small one, which `load_coco_json` also loads from one joined file. Every measurement is a separate process, with
libraries imported before the timer starts; the first reads (cold) are from disk if the file cache can be dropped
(Linux). Plain reads of the same number of bytes elsewhere in these files alternate with them, as a baseline of disk and
machine. The processor time of cold accesses is the cost of this project's code. Memory is the peak resident memory of
the process, with the part after the imports in brackets.

Exit code: 0 the targets are met (open in 10 s and 1 GiB; a cold access takes 5 ms on average, and 99 of 100 cost less
processor time than that), 1 they are not, 2 usage error.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from sohes_d2.cli.runner import make_main, tool_parser
from sohes_d2.labels.index import ShardIndex, read_info, remove_index, save_index, scan_label_file
from sohes_d2.labels.shards import merge_shards, missing_shards, shard_name, write_folder_index
from sohes_d2.labels.writer import SEPARATOR, dump_line, image_record, write_label_file

HEIGHT, WIDTH = 480, 640
FIRST_ID = 1_000_001  # all ids have seven digits, so all shards have the same layout
MAX_IMAGES = 9_999_999 - FIRST_ID
IMAGES_PER_SHARD = 1000
TEMPLATES = 20  # number of images with different masks; the others repeat them
OPEN_SECONDS, OPEN_BYTES, ACCESS_MS = 10.0, 2**30, 5.0
_ID = b"1000000"  # placeholder of the image id in a template


def make_folder(folder: str, images: int, masks: int) -> bool:
    """Write a folder of shards with their indices, unless it is already complete and of that size.

    Args:
        folder: the folder; created if missing.
        images: number of images, at most MAX_IMAGES.
        masks: number of masks in each, below 100,000.

    Returns:
        Whether it was written.
    """
    info = {"description": "generated for tools/benchmarks/benchmark_loading.py", "images": images, "masks": masks}
    os.makedirs(folder, exist_ok=True)
    first = os.path.join(folder, shard_name(0))
    if os.path.exists(first) and read_info(first) == info and not missing_shards(folder):
        return False
    shutil.rmtree(folder)
    os.makedirs(folder)
    templates = _templates(masks)

    def image(i: int) -> bytes:
        return dump_line(image_record(i, _file_name(i), HEIGHT, WIDTH))

    def annotations(i: int) -> bytes:
        return templates[i % TEMPLATES].replace(_ID, b"%d" % i)

    layout: ShardIndex | None = None
    shards = -(-images // IMAGES_PER_SHARD)
    for number in range(shards):
        start = number * IMAGES_PER_SHARD
        ids = range(FIRST_ID + start, FIRST_ID + min(start + IMAGES_PER_SHARD, images))
        path = os.path.join(folder, shard_name(number))
        sections = {
            "skipped": [],
            "images": ([image(i)] for i in ids),
            "annotations": ([annotations(i)] for i in ids) if masks else [],
        }
        write_label_file(path, info, sections)
        if layout is None or len(layout.rows) != len(ids):
            layout = scan_label_file(path)
        # Scanning every shard would take most of the time, and full ones differ only in the digits of the ids.
        rows = layout.rows.copy()
        rows["image_id"] = ids
        rows["crc32"] = [zlib.crc32(annotations(i), zlib.crc32(image(i))) for i in ids]
        # sizes differ, since the checksum at the end varies in its number of digits
        save_index(path, ShardIndex(rows, layout.sections, layout.stats, os.path.getsize(path)))
    write_folder_index(folder, {"images": images, "images_per_shard": IMAGES_PER_SHARD, "shards": shards})
    return True


def _file_name(image_id: int) -> str:
    return f"{image_id // 1000:04d}/{image_id}.jpg"


def _templates(masks: int) -> list[bytes]:
    """The annotations of images of chains of rectangles, three deep, with _ID in place of the image id."""
    from sohes_d2.structures.forest import Forest
    from sohes_d2.structures.masks import encode_masks

    rng = np.random.default_rng(0)

    def rectangles() -> Iterator[np.ndarray]:
        for k in range(masks):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            if k % 3 == 0:
                y, x = rng.integers(0, HEIGHT - 60), rng.integers(0, WIDTH - 60)
                height, width = rng.integers(12, 60, 2)
            else:
                height, width = height // 2, width // 2
            mask[y : y + height, x : x + width] = True
            yield mask

    templates = []
    for _ in range(TEMPLATES):
        parents = [k - 1 if k % 3 else -1 for k in range(masks)]
        forest = Forest(encode_masks(rectangles()), parents, (HEIGHT, WIDTH), scores=rng.uniform(0.5, 1, masks))
        image_id = int(_ID)
        annotations = forest.to_coco(image_id, image_id * 100_000 + 1)
        templates.append(SEPARATOR.join(map(dump_line, annotations)))
    return templates


def measure_lazy(path: str, accesses: int) -> dict[str, float]:
    """Open a folder or a label file, then read images at random; for a fresh process.

    Args:
        path: folder of shards, or a label file.
        accesses: number of images to read.

    Returns:
        images; open_s; rss, rss_added: peak resident bytes after opening, and the part after the imports;
        {cold,work,plain,warm}_{mean,p99,max}_ms: of the first access, of its processor time, of a plain read of the
        same number of bytes, and of a repeated access; rss_end at the end.
    """
    from sohes_d2.data.registration import open_entities

    def timed(function: Callable[[int], object], index: int) -> tuple[float, float]:
        start, start_work = time.perf_counter(), time.thread_time()
        function(index)
        work, wall = time.thread_time() - start_work, time.perf_counter() - start
        return wall * 1e3, work * 1e3

    dataset, result = _opened(path, open_entities)
    places, elsewhere = np.random.default_rng(0).integers(0, len(dataset), (2, accesses)).tolist()
    read_plainly = partial(_read_plainly, path, dataset.labels.rows)
    times: dict[str, list[float]] = {"cold": [], "work": [], "plain": [], "warm": []}
    for index, other in zip(places, elsewhere):
        wall, work = timed(dataset.__getitem__, index)
        times["cold"].append(wall)
        times["work"].append(work)
        times["plain"].append(timed(read_plainly, other)[0])
    times["warm"] = [timed(dataset.__getitem__, index)[0] for index in places]  # the same positions again
    for kind, values in times.items():
        for name, value in (("mean", np.mean(values)), ("p99", np.percentile(values, 99)), ("max", np.max(values))):
            result[f"{kind}_{name}_ms"] = float(value)
    result["rss_end"] = _memory("VmHWM")
    return result


def _read_plainly(path: str, rows: np.ndarray, index: int) -> bytes:
    """Read the bytes of the masks of image ``index``, as a baseline of the disk."""
    name = os.path.join(path, shard_name(index // IMAGES_PER_SHARD)) if os.path.isdir(path) else path
    descriptor = os.open(name, os.O_RDONLY)
    try:
        return os.pread(descriptor, int(rows["annotations_length"][index]), int(rows["annotations_offset"][index]))
    finally:
        os.close(descriptor)


def measure_loaded(path: str, accesses: int) -> dict[str, float]:
    """Load a COCO json with Detectron2; for a fresh process. ``accesses`` is ignored. Returns as above."""
    from detectron2.data.datasets import load_coco_json

    return _opened(path, load_coco_json)[1]


def _opened(path: str, function: Callable[[str, str], Sequence]) -> tuple[Sequence, dict[str, float]]:
    """Result of ``function`` for the labels, with its time and memory; from a cold file cache if possible."""
    _forget(path)
    _reset_peak()
    before = _memory("VmRSS")
    start = time.perf_counter()
    opened = function(path, "images")
    seconds = time.perf_counter() - start
    result = {"images": len(opened), "open_s": seconds, "rss": _memory("VmHWM")}
    result["rss_added"] = max(0, result["rss"] - before)  # the kernel counts resident pages only roughly
    return opened, result


MEASUREMENTS = {"lazy": measure_lazy, "loaded": measure_loaded}


def _in_fresh_process(measurement: str, path: str, accesses: int = 0) -> dict[str, float]:
    # -W: suppress warnings of torch at the import of Detectron2, which would interrupt the table
    command = [sys.executable, "-W", "ignore::FutureWarning", os.path.abspath(__file__), path]
    command += ["--measure", measurement, "--accesses", str(accesses)]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def _memory(field: str) -> int:
    """Resident bytes of this process: "VmRSS" now, "VmHWM" peak since `_reset_peak`."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))
    except OSError:  # not Linux: the peak since the start of the process is used for both
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak() -> None:
    """Reset the peak to the current resident memory, to exclude the imports."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return  # the peak then includes the imports


def _forget(path: str) -> None:
    """Drop a file, or the files of a folder, from the file cache."""
    if not hasattr(os, "posix_fadvise"):
        return
    paths = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
    for name in paths:
        descriptor = os.open(name, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MAX_IMAGES:
        raise argparse.ArgumentTypeError(f"must be in 1 to {MAX_IMAGES}, got {value}")
    return value


def _mebibytes(result: dict[str, float]) -> str:
    return f"{result['rss'] / 2**20:7.0f} MiB ({result['rss_added'] / 2**20:.1f} added)"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("folder", help="folder for the labels, in the sub-folders `large` and `small`")
    add("--images", type=_count, default=200_000, metavar="N", help="images of the large set (default: %(default)s)")
    what = "images of the small set (default: %(default)s)"
    add("--small-images", type=_count, default=2_000, metavar="N", help=what)
    add("--masks", type=_count, default=100, metavar="M", help="masks per image (default: %(default)s)")
    add("--accesses", type=int, default=2_000, metavar="N", help="images to read at random (default: %(default)s)")
    add("--keep", action="store_true", help="keep the labels, for another run")
    add("--measure", choices=tuple(MEASUREMENTS), help=argparse.SUPPRESS)  # measurement in a fresh process
    return parser.parse_args(arguments)


def run(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    if args.measure:
        print(json.dumps(MEASUREMENTS[args.measure](args.folder, args.accesses)))
        return 0
    folders = {name: os.path.join(args.folder, name) for name in ("large", "small")}
    merged = os.path.join(args.folder, "small.json")
    try:
        for name, images in (("large", args.images), ("small", args.small_images)):
            start = time.perf_counter()
            made = make_folder(folders[name], images, args.masks)
            how = f"made in {time.perf_counter() - start:.0f} s" if made else "used again"
            size = sum(entry.stat().st_size for entry in os.scandir(folders[name])) / 1e9
            print(f"{name}: {images} images x {args.masks} masks, {size:.2f} GB, {how}", flush=True)
        merge_shards(folders["small"], merged)
        large = _in_fresh_process("lazy", folders["large"], args.accesses)
        print(f"\nlarge, shards      open {large['open_s']:7.2f} s {_mebibytes(large)}")
        for kind, what in (
            ("cold", f"{args.accesses} random accesses, cold"),
            ("work", "processor time in these"),
            ("plain", "plain reads of as many bytes, in turns with these"),
            ("warm", "the same accesses, warm"),
        ):
            mean, p99, most = (large[f"{kind}_{name}_ms"] for name in ("mean", "p99", "max"))
            print(f"  {what + ':':50} mean {mean:.2f} ms, p99 {p99:.2f} ms, max {most:.2f} ms")
        print(f"  then {large['rss_end'] / 2**20:.0f} MiB", flush=True)
        shards = _in_fresh_process("lazy", folders["small"], args.accesses)
        indexed = _in_fresh_process("lazy", merged, args.accesses)
        remove_index(merged)
        scanned = _in_fresh_process("lazy", merged, args.accesses)
        loaded = _in_fresh_process("loaded", merged)
        rows = [("shards", shards), ("one file, no index", scanned), ("one file, indexed", indexed)]
        for name, result in [*rows, ("load_coco_json", loaded)]:
            print(f"small, {name:18} open {result['open_s']:7.2f} s {_mebibytes(result)}")
        print(
            f"load_coco_json / shards: {loaded['open_s'] / shards['open_s']:.0f} times the seconds, "
            f"{loaded['rss_added'] / max(shards['rss_added'], 2**16):.0f} times the added memory"
        )
    finally:
        if not args.keep:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
            remove_index(merged)
            if os.path.exists(merged):
                os.unlink(merged)
    opens = large["open_s"] < OPEN_SECONDS and large["rss"] < OPEN_BYTES
    met = opens and large["cold_mean_ms"] < ACCESS_MS and large["work_p99_ms"] < ACCESS_MS
    print(f"targets met: {met}")
    return 0 if met else 1


main = make_main("benchmark_loading", parse_arguments, run)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Compare the speed of global clustering with the published algorithm: a dictionary of pairs, scanned at every merge.

    python tools/benchmarks/benchmark_merging.py                  # 96 x 96 x 768, then 192 x 192 x 768 for the growth
    python tools/benchmarks/benchmark_merging.py --grid 24 --channels 32

Both run on one thread in the same process, on the same smooth random features, so that their ratio is comparable
between machines. The numba code is compiled before the timer starts. Prints ``speedup`` and whether the partitions are
``identical``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"  # read when numpy is loaded

from sohes_d2.cli.runner import make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    parser.add_argument("--grid", type=int, default=96, help="rows and columns (default: 96)")
    parser.add_argument("--channels", type=int, default=768, help="feature size (default: 768, a ViT-B's)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of the fast path; the best is used (default: 5)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # handle --help and errors before slow imports

import numpy as np

from sohes_d2.exploration.merging import MergeHistory, merge_regions
from sohes_d2.exploration.regions import RegionGraph

THETAS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


def merge_plainly(features: np.ndarray, stop: float = -2.0) -> MergeHistory:
    """Greedy merging as described in the papers: store similarities of all pairs, merge the best, update; no heap.

    The numerical rules are those of `sohes_d2.exploration.merging`: float32 sums, similarities accumulated in float64
    and rounded to float32, ties by the lower pair of ids.

    Args:
        features: (rows, cols, C).
        stop: ends when the best similarity falls below it.
    """
    rows, cols, channels = features.shape
    sums = features.reshape(-1, channels).astype(np.float32)
    neighbours: dict[int, set[int]] = {region: set() for region in range(rows * cols)}

    def similarity(a: int, b: int) -> np.float32:
        x, y = sums[a].astype(np.float64), sums[b].astype(np.float64)
        return np.float32(x @ y / max(np.sqrt(x @ x) * np.sqrt(y @ y), 1e-30))

    edges: dict[tuple[int, int], np.float32] = {}
    lengths: dict[tuple[int, int], int] = {}
    for a in range(rows * cols):
        for b in [a + 1] * (a % cols < cols - 1) + [a + cols] * (a < (rows - 1) * cols):
            edges[a, b] = similarity(a, b)
            lengths[a, b] = 1
            neighbours[a].add(b)
            neighbours[b].add(a)
    merges, surround = [], []
    while edges:
        best = max(edges.values())
        if best < stop:
            break
        a, b = min(pair for pair, value in edges.items() if value == best)
        merges.append((a, b, best, lengths[a, b]))
        sums[a] += sums[b]
        for c in neighbours.pop(b):
            del edges[min(b, c), max(b, c)]
            length = lengths.pop((min(b, c), max(b, c)))
            neighbours[c].discard(b)
            if c != a:
                neighbours[c].add(a)
                neighbours[a].add(c)
                pair = min(a, c), max(a, c)
                lengths[pair] = lengths.get(pair, 0) + length
        unlike, around = 0.0, 0
        for c in neighbours[a]:
            pair = min(a, c), max(a, c)
            edges[pair] = similarity(a, c)
            unlike += lengths[pair] * (1.0 - float(edges[pair]))
            around += lengths[pair]
        surround.append(unlike / max(around, 1))  # not compared: computed from rounded similarities
    kept, absorbed, similarities, removed = zip(*merges) if merges else ((), (), (), ())
    similarities = np.asarray(similarities, np.float32)
    return MergeHistory(
        rows * cols,
        np.asarray(kept, np.int32),
        np.asarray(absorbed, np.int32),
        similarities,
        similarities,
        np.asarray(removed, np.int64),
        np.zeros(len(merges), np.int64),
        np.asarray(surround, np.float32),
    )


def merge_grid(features: np.ndarray) -> MergeHistory:
    """Merge a (rows, cols, C) grid with the package, with the settings of the paper."""
    rows, cols, channels = features.shape
    return merge_regions(features.reshape(-1, channels), RegionGraph.of_grid(rows, cols))


def smooth_features(grid: int, channels: int, seed: int = 0) -> np.ndarray:
    """(grid, grid, channels) float32, slowly varying with steps between blobs, like features of a ViT."""
    import cv2

    generator = np.random.default_rng(seed)
    coarse = generator.standard_normal((max(2, grid // 8), max(2, grid // 8), channels)).astype(np.float32)
    blobs = np.stack(
        [cv2.resize(coarse[..., k], (grid, grid), interpolation=cv2.INTER_LINEAR) for k in range(channels)], -1
    )
    return blobs + 0.3 * generator.standard_normal(blobs.shape).astype(np.float32)


def timed(function, *arguments) -> tuple[float, MergeHistory]:
    """Return (seconds, result) of one call."""
    start = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - start, result


def run(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    merge_grid(smooth_features(8, 4))  # compiles, or loads the compiled code
    features = smooth_features(args.grid, args.channels)
    # The best of several short runs, since other load only adds time; the plain run is long enough to average it out.
    fast, history = min((timed(merge_grid, features) for _ in range(args.repeats)), key=lambda run: run[0])
    size = f"{args.grid} x {args.grid} x {args.channels}"
    print(f"{size}: heap {fast:.3f} s", flush=True)
    large_features = smooth_features(2 * args.grid, args.channels)
    larger = min(timed(merge_grid, large_features)[0] for _ in range(args.repeats))
    growth = f"{larger / fast:.1f} times as long for 4 times the cells"
    print(f"{2 * args.grid} x {2 * args.grid} x {args.channels}: heap {larger:.3f} s, {growth}")
    plain, reference = timed(merge_plainly, features)
    identical = all(
        np.array_equal(getattr(history, name), getattr(reference, name))
        for name in ("kept", "absorbed", "similarity", "length")
    )
    print(f"{size}: plain {plain:.1f} s")
    lowest = np.minimum.accumulate(history.priority)
    regions = [history.leaves - int(np.count_nonzero(lowest >= np.float32(theta))) for theta in THETAS]
    print(f"regions at thetas {list(THETAS)}: {regions}")
    print(f"speedup: {plain / fast:.0f}")
    print(f"identical: {str(identical).lower()}")
    return 0 if identical else 1


main = make_main("benchmark_merging", parse_arguments, run)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Measure CPU seconds by stage and peak memory of phase 1 per photo, for one or two configurations.

    python tools/benchmarks/benchmark_exploration.py --images photos/
    python tools/benchmarks/benchmark_exploration.py --images photos/ --against configs/exploration/color_texture.yaml
    python tools/benchmarks/benchmark_exploration.py --images photos/ --against-checkout ../older \\
        --sizes 0 0.15 1 3.4 12

Each configuration and size is measured in separate processes, in turn, on one thread: one photo to warm up (numba
compiles, weights load), then every photo once. ``--against-checkout`` measures another checkout of this project with
its defaults. Photos are resized to the sizes, in megapixels; 0 keeps their size. Peak memory is the largest resident
size of the process, including libraries and weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
PACKAGE = "sohes_d2.exploration."
# Stage -> timed functions, in this version of the project and in older ones; nested stages are counted separately.
STAGES = {
    "features": ["labeler:PseudoLabeler.features", "features.base:FeatureExtractor.extract"],
    "crops": [
        "labeler:PseudoLabeler.crop_features",
        "labeler:PseudoLabeler._closer_looks",
        "labeler:LocalReclustering.search",
    ],
    "leaves": ["looks:Looks._prepare"],
    "merging": ["looks:merge_regions", "labeler:merge_regions", "zoom:merge_regions"],
    "trees": ["looks:MergeTree"],
    "selection": ["labeler:PseudoLabeler._from_trees", "filtering:MaskFilter.best"],
    "refinement": ["labeler:PseudoLabeler._refine", "labeler:refine_proposals"],
    "encoding": ["merge_tree:MergeTree.encode", "labeler:encode_window"],
    "hierarchy": ["labeler:Forest.from_masks"],
}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    from sohes_d2.cli.runner import tool_parser

    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of photos")
    add("--photos", type=int, default=4, metavar="N", help="number of photos, spread over the folder (default: 4)")
    add("--config-file", default=str(ROOT / "configs/exploration/joint.yaml"), metavar="YAML", help="default: joint")
    add("--against", metavar="YAML", help="another configuration")
    add("--against-checkout", metavar="DIR", help="another checkout, with its configs/exploration/joint.yaml")
    add("--sizes", type=float, nargs="+", default=[0.0], metavar="MP", help="megapixels; 0: unchanged (default)")
    args = parser.parse_args(arguments)
    if args.photos < 1 or min(args.sizes) < 0:
        parser.error("--photos must be at least 1, and --sizes must not be negative")
    return args


def benchmark(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    rivals = {"A": (ROOT, args.config_file)}
    if args.against_checkout:
        folder = Path(args.against_checkout).resolve()
        rivals["B"] = (folder, args.against or str(folder / "configs/exploration/joint.yaml"))
    elif args.against:
        rivals["B"] = (ROOT, args.against)
    for name, (folder, config) in rivals.items():
        print(f"{name}: {os.path.relpath(config, folder)}{'' if folder == ROOT else ' of the other checkout'}")
    for size in args.sizes:
        results = {name: run_child(args, *rival, size) for name, rival in rivals.items()}
        for name, result in results.items():
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in result["stages"].items())
            print(
                f"{name}: {result['pixels'] / 1e6:.2f} megapixels, {result['seconds']:.2f} CPU s a photo ({stages}), "
                f"{result['masks']:.0f} masks, peak {result['peak_mib']:.0f} MiB, before {result['before_mib']:.0f} MiB"
            )
        if len(results) == 2:
            ratio = results["B"]["seconds"] / results["A"]["seconds"]
            memory = results["B"]["peak_mib"] / results["A"]["peak_mib"]
            print(f"B / A: {ratio:.2f} times the CPU seconds, {memory:.2f} times the peak memory", flush=True)
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    from sohes_d2.cli.runner import make_main

    return make_main("benchmark_exploration", parse_arguments, benchmark)(arguments)


def run_child(args: argparse.Namespace, folder: Path, config: str, size: float) -> dict:
    """Measure one configuration of one checkout at one size, in a separate process."""
    # Does not use this command line, since an older checkout may lack imports of it.
    arguments = (os.path.abspath(args.images), args.photos, os.path.abspath(config), size)
    call = f"import json, benchmark_exploration as tool; print(json.dumps(tool.measure(*{arguments})))"
    command = [sys.executable, "-c", call]
    path = [str(folder), str(Path(__file__).parent)]
    environment = {**os.environ, **THREADS, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(images: str, count: int, config: str, size: float) -> dict:
    """Label photos with the package on the path; returns seconds, masks and memory."""
    import cv2
    import torch

    import sohes_d2  # before Detectron2, which it patches
    from sohes_d2.exploration.labeler import PseudoLabeler
    from sohes_d2.structures.images import read_image

    from detectron2.config import get_cfg

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    cfg = get_cfg()
    sohes_d2.add_sohes_config(cfg)
    cfg.merge_from_file(config)
    cfg.MODEL.DEVICE = "cpu"
    labeler = PseudoLabeler.from_cfg(cfg)
    paths = sorted(path for path in Path(images).iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = paths[:: max(1, len(paths) // count)][:count]
    labeler.generate(read_image(str(paths[0]))[:96, :128])
    before = peak_mib()
    seconds = wrap_stages()
    total, masks, pixels = 0.0, 0, 0
    for path in paths:  # one in memory at a time, as in a labeling worker
        photo = resized(read_image(str(path)), size, cv2)
        start = time.process_time()
        masks += len(labeler.generate(photo))
        total += time.process_time() - start
        pixels += photo.shape[0] * photo.shape[1]
    stages = {stage: seconds[stage] / len(paths) for stage in STAGES if seconds[stage] > 0}
    stages["other"] = (total - sum(seconds.values())) / len(paths)
    return {
        "seconds": total / len(paths),
        "stages": stages,
        "masks": masks / len(paths),
        "pixels": pixels / len(paths),
        "peak_mib": peak_mib(),
        "before_mib": before,
    }


def resized(photo, megapixels: float, cv2):
    """Resize an (H, W, 3) photo to a number of megapixels."""
    if not megapixels:
        return photo
    scale = (megapixels * 1e6 / (photo.shape[0] * photo.shape[1])) ** 0.5
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    return cv2.resize(photo, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def wrap_stages() -> dict[str, float]:
    """Wrap the existing functions of STAGES with timers; returns CPU seconds by stage, updated as they run."""
    seconds: dict[str, float] = defaultdict(float)
    running: list[str] = []
    since = [0.0]

    def switch(change) -> None:
        now = time.process_time()
        if running:
            seconds[running[-1]] += now - since[0]
        change()
        since[0] = now

    def wrap(function, stage: str):
        def timed(*args, **kwargs):
            switch(lambda: running.append(stage))
            try:
                return function(*args, **kwargs)
            finally:
                switch(running.pop)

        return timed

    for stage, names in STAGES.items():
        for name in names:
            module_name, _, path = name.partition(":")
            try:
                owner = importlib.import_module(PACKAGE + module_name)
            except ModuleNotFoundError:
                continue
            *parents, last = path.split(".")
            for parent in parents:
                owner = getattr(owner, parent, None)
            function = getattr(owner, last, None)
            if function is None:
                continue
            # class methods are already bound
            bound = isinstance(vars(owner).get(last), classmethod)
            setattr(owner, last, staticmethod(wrap(function, stage)) if bound else wrap(function, stage))
    return seconds


if __name__ == "__main__":
    sys.exit(main())

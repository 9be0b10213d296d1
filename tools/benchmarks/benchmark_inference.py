#!/usr/bin/env python
"""Measure time and memory, without the model, of converting a decoder's outputs to the entities of an image.

    python tools/benchmarks/benchmark_inference.py  # 1000 masks of a photo of 1500 x 2250 pixels, on the CPU
    python tools/benchmarks/benchmark_inference.py --wide  # masks spread over the whole photo: many run lengths
    python tools/benchmarks/benchmark_inference.py --device cuda --masks 1000 --size 1500 2250

The outputs are generated: smooth blobs of all sizes with random ancestors. Measures `EntityInference`: selecting
queries, upsampling, scoring and encoding masks, boxes, and the forest. Memory is the peak minus the memory before:
tensors on CUDA devices, otherwise resident memory of the process (Linux).

Exit code: 0 less than 2 GiB, 1 not.
"""

from __future__ import annotations

import argparse
import sys
import time

from sohes_d2.cli.runner import make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--device", default="cpu", help="default: cpu")
    add("--masks", type=int, default=1000, metavar="N", help="default: 1000")
    what = "size of the photo (default: 1500 2250)"
    add("--size", type=int, nargs=2, default=(1500, 2250), metavar=("H", "W"), help=what)
    add("--wide", action="store_true", help="masks spread over the whole photo")
    args = parser.parse_args(arguments)
    if args.masks < 1 or min(args.size) < 1:
        parser.error("--masks and --size must be at least 1")
    return args


if __name__ == "__main__":
    parse_arguments()  # handle --help and errors before slow imports

import torch
from part_meter import MIB, PeakMemory
from torch import Tensor
from torch.nn import functional as F

import sohes_d2  # noqa: F401  (before Detectron2, which it patches)
from sohes_d2.modeling.inference import EntityInference

LIMIT_BYTES = 2 * 2**30
STRIDE = 4  # of the decoder's masks
PADDED_TO = 32
ANCESTOR_DIM = 256
SHORTEST_SIDE = 800  # of the model's input


def generate(count: int, image_size: tuple[int, int], wide: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Generate class logits (count, 2) and mask logits (count, h, w) of a decoder, deterministically.

    Args:
        count: number of queries.
        image_size: (H, W) of the model's input.
        wide: random fields instead of ellipses with wavy outlines.
        seed: random seed.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = (-(-side // PADDED_TO) * PADDED_TO // STRIDE for side in image_size)
    waves = torch.randn(count, 1, max(2, height // 16), max(2, width // 16), generator=generator)
    masks = F.interpolate(waves, size=(height, width), mode="bicubic")[:, 0]
    if wide:
        masks.mul_(6).sub_(3)
    else:
        y, x = torch.arange(height)[:, None], torch.arange(width)
        centers = torch.rand(count, 2, generator=generator) * torch.tensor([height, width])
        longest = torch.tensor(height / 2)
        radii = torch.exp(torch.rand(count, 2, generator=generator) * (longest / 2).log()) * 2  # 2 cells to longest
        for mask, (cy, cx), (ry, rx) in zip(masks, centers, radii):
            mask += 6 * (1 - ((y - cy) / ry) ** 2 - ((x - cx) / rx) ** 2).clamp(min=-1.5)
    return torch.randn(count, 2, generator=generator), masks


def run(args: argparse.Namespace) -> int:
    """Measure and print the numbers; returns the exit code."""
    height, width = args.size
    scale = SHORTEST_SIDE / min(args.size)
    image_size = round(height * scale), round(width * scale)
    logits, masks = (each.to(args.device) for each in generate(args.masks, image_size, args.wide))
    generator = torch.Generator().manual_seed(1)
    sides = torch.randn(2, args.masks, ANCESTOR_DIM, generator=generator).to(args.device)
    ancestors = sides[0], sides[1] / ANCESTOR_DIM**0.5
    padded_size = masks.shape[1] * STRIDE, masks.shape[2] * STRIDE
    inference = EntityInference(max_masks=args.masks)

    def run(count: int) -> dict:
        some = ancestors[0][:count], ancestors[1][:count]
        found = inference.find(logits[:count], masks[:count], some, padded_size, image_size, (height, width))
        return inference.combine([found], (height, width))

    run(1)  # loads the libraries
    memory = PeakMemory(args.device)
    memory.start()
    start, start_cpu = time.perf_counter(), time.process_time()
    result = run(args.masks)  # ends on the host, so that the device is done
    seconds, seconds_cpu, added = time.perf_counter() - start, time.process_time() - start_cpu, memory.added()
    rles = result["instances"].pred_masks.rles
    print(
        f"{len(rles)} masks of {height} x {width} pixels from logits of {masks.shape[1]} x {masks.shape[2]}, "
        f"{args.device}, {torch.get_num_threads()} threads"
    )
    print(f"{seconds:.1f} s, {seconds_cpu:.1f} s of cores, {1e3 * seconds_cpu / args.masks:.1f} ms of cores per mask")
    print(f"peak {added / MIB:.0f} MiB, of which RLEs {sum(len(rle['counts']) for rle in rles) / MIB:.1f} MiB")
    met = added < LIMIT_BYTES
    print(f"under 2 GiB: {met}")
    return 0 if met else 1


main = make_main("benchmark_inference", parse_arguments, run)


if __name__ == "__main__":
    sys.exit(main())

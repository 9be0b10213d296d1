#!/usr/bin/env python
"""Generate synthetic scenes with a known forest: images and a class-agnostic COCO json, without a download.

    python datasets/prepare_synthetic.py --train 1000 --val 100

Writes {train,val}/scene_*.png and annotations/{train,val}.json, each json after all of its images. A scene depends only
on --seed, --size and its number: larger splits start with the same scenes, and no scene is in both splits. A run
replaces the files of an earlier one, finished or not; the json is deleted before the first image changes and written
after the last one.
"""

from __future__ import annotations

import argparse
import glob
import os
import sys

from sohes_d2.cli.runner import EXIT_DONE, EXIT_SKIPPED, make_main, tool_parser
from sohes_d2.data.benchmarks.builtin import datasets_root
from sohes_d2.data.benchmarks.conversion import Entity, Item, Scene, Summary, convert
from sohes_d2.data.synthetic.scene import DEFAULT_SIZE, MIN_AREA, VERSION, generate_scene
from sohes_d2.errors import InputError
from sohes_d2.structures.files import check_output, write_picture

MOST_SCENES = 1_000_000  # per split
FIRST_INDEX = {"train": 0, "val": MOST_SCENES}


def write_split(root: str, split: str, count: int, seed: int, size: tuple[int, int]) -> Summary:
    """Write the first ``count`` scenes of a split.

    Args:
        root: folder of the data set.
        split: "train" or "val".
        count: number of scenes; at most a million.
        seed: seed of the series.
        size: (H, W) in pixels.

    Raises:
        InputError: the seed or the size cannot be used.
        OutputError: a file cannot be written.
    """
    try:
        generate_scene(seed, FIRST_INDEX[split], size)  # raise errors before existing files are deleted
    except ValueError as error:
        raise InputError(str(error)) from error
    folder = os.path.join(root, split)
    output = os.path.join(root, "annotations", f"{split}.json")
    os.makedirs(folder, exist_ok=True)
    os.makedirs(os.path.dirname(output), exist_ok=True)
    info = {
        "description": f"synthetic scenes, {split}",
        "version": VERSION,
        "seed": seed,
        "count": count,
        "size": list(size),
        "min_area": MIN_AREA,
    }
    # Images of one run must not be mixed with the json of another, and overwritten images must not count as done.
    for path in [output, *glob.glob(glob.escape(output) + ".*.journal")]:
        if os.path.exists(path):
            os.unlink(path)

    def read(item: Item) -> Scene:
        image, forest = generate_scene(seed, item.source, size)
        write_picture(os.path.join(folder, item.file_name), image, "PNG")
        return Scene(size, [Entity(mask, int(parent)) for mask, parent in zip(forest.masks, forest.parents)])

    first = FIRST_INDEX[split]
    items = [Item(k + 1, f"scene_{first + k:07d}.png", first + k) for k in range(count)]
    summary = convert(output, info, items, read)
    written = {item.file_name for item in items}
    for path in glob.glob(os.path.join(glob.escape(folder), "scene_*.png")):
        if os.path.basename(path) not in written:  # left from a larger set; `sohes label` would use it
            os.unlink(path)
    return summary


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add(
        "--output", metavar="DIR", help="folder to write to (default: synthetic in $DETECTRON2_DATASETS, else datasets)"
    )
    add("--train", type=int, default=1000, metavar="N", help="scenes; 0: none (default: %(default)s)")
    add("--val", type=int, default=100, metavar="N", help="scenes; 0: none (default: %(default)s)")
    add("--size", type=int, nargs=2, default=DEFAULT_SIZE, metavar=("H", "W"), help="in pixels (default: 128 128)")
    add("--seed", type=int, default=0, help="seed of all scenes (default: %(default)s)")
    args = parser.parse_args(arguments)
    for split in FIRST_INDEX:
        if not 0 <= getattr(args, split) <= MOST_SCENES:
            parser.error(f"--{split} must be 0 to {MOST_SCENES}, got {getattr(args, split)}")
    return args


def write(args: argparse.Namespace) -> int:
    """Write the requested splits; returns the exit code."""
    root = args.output if args.output is not None else os.path.join(datasets_root(), "synthetic")
    check_output(root, folder=True)
    code = EXIT_DONE
    for split in FIRST_INDEX:
        if getattr(args, split):
            summary = write_split(root, split, getattr(args, split), args.seed, tuple(args.size))
            print(summary)
            code = EXIT_SKIPPED if summary.skipped else code
    return code


main = make_main("prepare_synthetic", parse_arguments, write)


if __name__ == "__main__":
    sys.exit(main())

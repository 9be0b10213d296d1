#!/usr/bin/env python
"""Prepare SA-1B: lists of training images, and a test split of 1,000 images as a COCO json.

Expects the archives of https://ai.meta.com/datasets/segment-anything-downloads, unpacked in any sub-folders:
    sa1b/**/sa_*.jpg and sa_*.json beside each

    python datasets/prepare_sa1b.py --test
    python datasets/prepare_sa1b.py --train 200000

Images are ordered by the sha256 of their name ("sa_123"), independent of their content. The test split is the first
1,000 of those numbered up to 11,000, all of which are in the archive sa_000000; a training list is the first N of all
others. Thus training lists never contain test images, for any set of archives, and a list starts with the smaller lists
of the same archives. Training reads the json of each image on access.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.builtin import read_sa1b_json
from sohes_d2.data.benchmarks.conversion import Item, Scene, Summary, coco_entity, convert, require
from sohes_d2.errors import InputError
from sohes_d2.labels.schema import image_size
from sohes_d2.structures.files import atomic_writer

REMEDY = (
    "Ask for SA-1B at https://ai.meta.com/datasets/segment-anything-downloads and unpack its archives (sa_000000.tar "
    "has the test images) under sa1b/."
)
TEST_SIZE = 1_000
LAST_TEST_NUMBER = 11_000


def find_images(root: str) -> list[str]:
    """Paths under ``root`` of images with a json beside them, in any order."""
    found = []
    for folder, _, files in os.walk(root):
        there = set(files)
        for name in files:
            stem, suffix = os.path.splitext(name)
            if suffix == ".jpg" and stem.startswith("sa_") and stem[3:].isdigit() and stem + ".json" in there:
                found.append(os.path.relpath(os.path.join(folder, name), root))
    return found


def number(path: str) -> int:
    """The number of an image: 123 of ``sa_000000/sa_123.jpg``."""
    return int(os.path.splitext(os.path.basename(path))[0][3:])


def shuffled(paths: Iterable[str]) -> list[str]:
    """The images in the fixed order, independent of their folders."""

    def key(path: str) -> bytes:
        return hashlib.sha256(os.path.splitext(os.path.basename(path))[0].encode("ascii")).digest()

    return sorted(paths, key=key)


def test_split(paths: Iterable[str]) -> list[str]:
    """The images of the test split, sorted by number.

    Raises:
        InputError: images are missing, so the split would be different.
    """
    candidates = shuffled(path for path in paths if number(path) <= LAST_TEST_NUMBER)
    if len(candidates) < TEST_SIZE:
        raise InputError(
            f"the test split is chosen from the images up to sa_{LAST_TEST_NUMBER}, but only {len(candidates)} of "
            f"them exist. {REMEDY}"
        )
    return sorted(candidates[:TEST_SIZE], key=number)


def train_split(paths: Iterable[str], size: int) -> list[str]:
    """The images of a training list, in the fixed order.

    Raises:
        InputError: there are not enough images.
    """
    candidates = shuffled(path for path in paths if number(path) > LAST_TEST_NUMBER)
    if len(candidates) < size:
        raise InputError(
            f"{size} training images are requested, but only {len(candidates)} exist (those up to "
            f"sa_{LAST_TEST_NUMBER} are kept for the test split). An archive has about 11,000. {REMEDY}"
        )
    return candidates[:size]


def write_list(path: str, file_names: Iterable[str]) -> None:
    """Write one name per line, atomically."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with atomic_writer(path) as file:
        file.writelines(f"{name}\n".encode() for name in file_names)


def read_scene(item: Item) -> Scene:
    """The masks of one image.

    Raises:
        ValueError: its json is damaged.
    """
    image, annotations = read_sa1b_json(item.source)
    size = image_size(image, item.source)
    return Scene(size, [coco_entity(annotation, size) for annotation in annotations])


def body(args: argparse.Namespace) -> Summary | None:
    """Write the requested files; returns the summary of the test split, if requested."""
    fill_paths(args, "entities_sa1b_test_1000")
    require(REMEDY, args.images)
    paths = find_images(args.images)
    for size in args.train:
        output = os.path.join(args.root, "entities", f"sa1b_train_{size}.txt")
        write_list(output, train_split(paths, size))
        print(f"{output}: {size} images")
    if not args.test:
        return None
    names = test_split(paths)
    digest = hashlib.sha256("\n".join(str(number(name)) for name in names).encode()).hexdigest()
    write_list(os.path.splitext(args.output)[0] + ".txt", names)
    print(f"sha256 of the numbers of the {len(names)} test images: {digest}")
    info = {"description": "SA-1B, 1,000 test images, class-agnostic", "images_sha256": digest, "limit": args.limit}
    items = [
        Item(number(name), name, os.path.join(args.images, os.path.splitext(name)[0] + ".json"))
        for name in names[: args.limit or None]
    ]
    return convert(args.output, info, items, read_scene)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, paths=("images",))
    parser.add_argument("--test", action="store_true", help="write the test split")
    parser.add_argument("--train", type=int, action="append", default=[], metavar="N", help="write a training list")
    args = parser.parse_args(arguments)
    if not args.test and not args.train:
        parser.error("nothing to do: pass --test, --train N, or both")
    if any(size < 1 for size in args.train):
        parser.error("--train must be positive")
    return run("prepare_sa1b", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

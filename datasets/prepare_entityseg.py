#!/usr/bin/env python
"""Convert EntitySeg to a class-agnostic COCO json.

Expects the annotations of https://github.com/adobe-research/EntitySeg-Dataset/releases/tag/v1.0, which are COCO jsons,
and the images in the same size (files are found by their name in the json, or by its last part if the folders differ):
    entityseg/annotations/entityseg_val_lr.json
    entityseg/images_lr/entity_01_11580/*  entity_02_11598/*  entity_03_10049/*

    python datasets/prepare_entityseg.py

"lr" is the version of 800 to 1333 pixels. For the original size use --annotations and --images.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import Summary, convert_coco, require
from sohes_d2.errors import InputError
from sohes_d2.labels.schema import image_name

REMEDY = (
    "Get the annotations from https://github.com/adobe-research/EntitySeg-Dataset/releases/tag/v1.0 into "
    "entityseg/annotations/, and the images from https://huggingface.co/datasets/qqlu1992/Adobe_EntitySeg into "
    "entityseg/images_lr/."
)


def image_finder(root: str) -> Callable[[dict[str, Any]], str]:
    """A function from an image record to its path under ``root``.

    The path of the record is used if it exists, else the only file with the same last part: the archives of the three
    sources unpack to folders of different depths.
    """
    by_name: dict[str, list[str]] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            by_name.setdefault(name, []).append(os.path.relpath(os.path.join(folder, name), root))

    def find(image: dict[str, Any]) -> str:
        name = image_name(image)
        if os.path.isfile(os.path.join(root, name)):
            return name
        found = by_name.get(os.path.basename(name), [])
        if len(found) > 1:
            raise InputError(f"{name!r} may be any of {found}; unpack each of the three sources into its folder")
        return found[0] if found else name

    return find


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(args, "entities_entityseg_val", annotations="entityseg/annotations/entityseg_val_lr.json")
    info = {"description": "EntitySeg, class-agnostic", "url": "https://github.com/adobe-research/EntitySeg-Dataset"}
    if args.no_images:
        return convert_coco(args, info, REMEDY, image_name)
    require(REMEDY, args.images)
    return convert_coco(args, info, REMEDY, image_finder(args.images))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run("prepare_entityseg", make_parser(__doc__), arguments, body)


if __name__ == "__main__":
    sys.exit(main())

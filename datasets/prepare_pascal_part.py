#!/usr/bin/env python
"""Convert PASCAL-Part to a class-agnostic COCO json with parents of parts.

Expects the annotations of http://roozbehm.info/pascal-parts/pascal-parts.html and the images of PASCAL VOC 2010:
    pascal_part/Annotations_Part/*.mat
    VOCdevkit/VOC2010/JPEGImages/*.jpg
    VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt

    python datasets/prepare_pascal_part.py --split val
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import Entity, Item, Scene, Summary, convert, read_mat, require
from sohes_d2.errors import InputError
from sohes_d2.structures.images import image_size
from sohes_d2.structures.masks import encode_masks

REMEDY = (
    "Get http://roozbehm.info/pascal-parts/trainval.tar.gz and unpack it in pascal_part/, and "
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar and unpack it under the root."
)


def objects_and_parts(variables: dict[str, Any]) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """The objects of one annotation file: the (H, W) mask of each, and those of its parts."""
    return [
        (np.asarray(entry["mask"]), [np.asarray(part["mask"]) for part in _structs(entry["parts"])])
        for entry in _structs(variables["anno"][0, 0]["objects"])
    ]


def _structs(array: Any) -> list[Any]:
    """The elements of a MATLAB array of structs; none for an empty array, which has no fields."""
    return list(array.ravel()) if array.size else []


def read_scene(item: Item) -> Scene:
    """The objects and parts of one image.

    Raises:
        ValueError: a damaged file, or a mask of a different size than the photo.
        OSError: a file is missing.
    """
    photo, annotation = item.source
    size = image_size(photo)
    masks, parents = [], []
    for mask, parts in read_mat(annotation, "an annotation file of PASCAL-Part", objects_and_parts):
        whole = len(masks)
        masks += [mask, *parts]
        parents += [-1] + [whole] * len(parts)
    for mask in masks:
        if mask.shape != size:
            raise ValueError(f"{annotation!r} has a mask of shape {mask.shape}, its photo {size}")
    return Scene(size, [Entity(mask, parent=parent) for mask, parent in zip(encode_masks(masks), parents)])


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(
        args,
        f"entities_pascal_part_{args.split}",
        annotations="pascal_part/Annotations_Part",
        voc="VOCdevkit/VOC2010",
    )
    names_file = os.path.join(args.voc, "ImageSets", "Main", f"{args.split}.txt")
    images = os.path.join(args.voc, "JPEGImages")
    require(REMEDY, args.annotations, names_file, images)
    with open(names_file, encoding="ascii") as file:
        names = sorted({line.split()[0] for line in file if line.strip()})
    items = []
    for name in names:
        mat = os.path.join(args.annotations, name + ".mat")
        if not name.replace("_", "").isdigit():
            raise InputError(f"{names_file!r}: {name!r} is not the name of an image of VOC, like 2008_000002")
        if os.path.isfile(mat):
            image = os.path.join(images, name + ".jpg")
            items.append(Item(int(name.replace("_", "")), name + ".jpg", (image, mat)))
    if not items:
        raise InputError(f"no image of {names_file!r} has annotations in {args.annotations!r}. {REMEDY}")
    info = {"description": f"PASCAL-Part {args.split}, class-agnostic", "limit": args.limit}
    return convert(args.output, info, items[: args.limit or None], read_scene)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, ("val", "train"), paths=("annotations", "voc"))
    return run("prepare_pascal_part", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

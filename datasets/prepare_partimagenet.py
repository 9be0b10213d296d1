#!/usr/bin/env python
"""Convert PartImageNet to a class-agnostic COCO json, from one of its releases (https://github.com/tacju/partimagenet).

seg (default): PartImageNet_Seg.zip, with maps of wholes and of parts; the parent of a part is the whole with most
of its pixels:
    PartImageNet/images/{train,val,test}/*.JPEG
    PartImageNet/annotations/{train,val,test}/*.png          part of each pixel, 40 = none
    PartImageNet/annotations/{train,val,test}_whole/*.png    class of each pixel, 158 = none

ood: PartImageNet_OOD, COCO jsons with polygons of parts only, images in folders by class:
    partimagenet_ood/{train,val,test}.json
    partimagenet_ood/{train,val,test}/n*/*.JPEG

    python datasets/prepare_partimagenet.py --split val

The maps of seg do not separate parts of one kind: all feet of an animal are one mask.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import (
    Entity,
    Item,
    Scene,
    Summary,
    convert,
    convert_coco,
    image_files,
    read_label_map,
    require,
)
from sohes_d2.errors import InputError
from sohes_d2.labels.schema import image_name
from sohes_d2.structures.forest import NO_PARENT
from sohes_d2.structures.images import image_size
from sohes_d2.structures.masks import encode_label_map

REMEDY = "Get it by the links of https://github.com/tacju/partimagenet (PartImageNet_Seg.zip, or the OOD release)."
NO_PART = 40
NO_WHOLE = 158


def read_maps(item: Item) -> Scene:
    """The wholes and parts of one image of the release seg.

    Raises:
        ValueError: a map is not a grey or palette image of the photo's size, or has an unknown value.
        OSError: a file is missing.
    """
    photo, whole_file, part_file = item.source
    size = image_size(photo)
    wholes, parts = _read_map(whole_file, size, NO_WHOLE), _read_map(part_file, size, NO_PART)
    whole_values = [int(v) for v in np.unique(wholes) if v != NO_WHOLE]
    part_values = [int(v) for v in np.unique(parts) if v != NO_PART]
    parents = [NO_PARENT] * len(whole_values)
    for value in part_values:
        # the whole with most of the part's pixels
        votes = [int(((wholes == whole) & (parts == value)).sum()) for whole in whole_values]
        parents.append(int(np.argmax(votes)) if any(votes) else NO_PARENT)
    masks = encode_label_map(wholes, whole_values) + encode_label_map(parts, part_values)
    return Scene(size, [Entity(mask, parent=parent) for mask, parent in zip(masks, parents)])


def _read_map(path: str, size: tuple[int, int], none: int) -> np.ndarray:
    labels = read_label_map(path, size)
    if labels.max(initial=0) > none:
        raise ValueError(f"{path!r} has the value {labels.max()}, over {none} for no label; is it another kind of map?")
    return labels


def ood_file_name(image: dict) -> str:
    """The path of an image of the release ood, in the folder of its class, which is the prefix of its name."""
    name = image_name(image)
    return name if "/" in name else f"{name.split('_')[0]}/{name}"


def body(args) -> Summary:
    """Convert the data set."""
    info = {"description": f"PartImageNet {args.form} {args.split}, class-agnostic"}
    if args.form == "ood":
        fill_paths(args, f"entities_partimagenet_ood_{args.split}", annotations=f"partimagenet_ood/{args.split}.json")
        return convert_coco(args, info, REMEDY, ood_file_name)
    fill_paths(args, f"entities_partimagenet_{args.split}", annotations=f"PartImageNet/annotations/{args.split}")
    images, parts, wholes = args.images, args.annotations, args.annotations.rstrip("/") + "_whole"
    require(REMEDY, images, parts, wholes)
    items = []
    for k, name in enumerate(image_files(images), 1):
        png = os.path.splitext(name)[0] + ".png"
        items.append(Item(k, name, [os.path.join(f, n) for f, n in ((images, name), (wholes, png), (parts, png))]))
    if not items:
        raise InputError(f"no *.JPEG in {images!r}. {REMEDY}")
    return convert(args.output, {**info, "limit": args.limit}, items[: args.limit or None], read_maps)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, ("val", "train", "test"))
    parser.add_argument("--form", choices=("seg", "ood"), default="seg", help="the release (default: %(default)s)")
    return run("prepare_partimagenet", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

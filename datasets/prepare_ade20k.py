#!/usr/bin/env python
"""Convert ADE20K to a class-agnostic COCO json, in one of its two forms.

full (default): the 2021 release with all objects, parts and subparts, from
https://groups.csail.mit.edu/vision/datasets/ADE20K (registration):
    ADE20K_2021_17_01/images/ADE/{training,validation}/**/ADE_*.{jpg,json} and the folder of masks beside each

instance: the 100 thing classes of the scene parsing benchmark, without parts, from
http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and, for the masks,
http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar:
    ADEChallengeData2016/images/{training,validation}/*.jpg
    ADEChallengeData2016/annotations_instance/{training,validation}/*.png

    python datasets/prepare_ade20k.py --split val
    python datasets/prepare_ade20k.py --form instance --split val

The masks of the full form distinguish visible (255) and occluded (128) pixels of an object. The visible ones are used;
--amodal uses both.
"""

from __future__ import annotations

import json
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
    image_files,
    read_label_map,
    require,
)
from sohes_d2.errors import InputError
from sohes_d2.structures.forest import NO_PARENT
from sohes_d2.structures.images import image_size, open_image
from sohes_d2.structures.masks import encode_label_map, encode_masks

FOLDERS = {"train": "training", "val": "validation"}
VISIBLE = 255
REMEDIES = {
    "full": "Register at https://groups.csail.mit.edu/vision/datasets/ADE20K/request_data/ for the 2021 release "
    "(ADE20K_2021_17_01) and unpack it under the root.",
    "instance": "Get http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, and unpack "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar inside it.",
}


def full_items(images: str) -> list[Item]:
    """The annotated images under a folder of the full form, sorted by path; ids count from 1."""
    names = []
    for folder, _, files in os.walk(images):
        names += [
            os.path.relpath(os.path.join(folder, name), images) for name in files if name.lower().endswith(".json")
        ]
    names.sort()
    return [Item(k, os.path.splitext(name)[0] + ".jpg", os.path.join(images, name)) for k, name in enumerate(names, 1)]


def read_full(item: Item, amodal: bool) -> Scene:
    """The objects and parts of one image of the full form.

    Raises:
        ValueError: the json has a different form, or a mask a different size than the photo.
        OSError: a file is missing.
    """
    folder = os.path.dirname(item.source)
    size = image_size(os.path.splitext(item.source)[0] + ".jpg")
    with open(item.source, "rb") as file:
        data = file.read()
    try:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:  # older files of the set have names in latin-1
            text = data.decode("latin-1")
        objects = json.loads(text)["annotation"]["object"]
        # MATLAB writes a single object without a list
        objects = [objects] if isinstance(objects, dict) else objects
        index = {entry["id"]: k for k, entry in enumerate(objects)}
        parents = [_parent(entry["parts"]["ispartof"], index) for entry in objects]
        masks = [os.path.join(folder, entry["instance_mask"]) for entry in objects]
        ids = [entry["id"] for entry in objects]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{item.source!r} is not in the 2021 form ({type(error).__name__}: {error})") from error
    if len(index) != len(objects):
        raise ValueError(f"{item.source!r}: two objects share an id")
    maps = (read_label_map(path, size) for path in masks)
    rles = encode_masks(labels > 0 if amodal else labels == VISIBLE for labels in maps)
    return Scene(size, [Entity(m, parent=p, source_id=i) for m, p, i in zip(rles, parents, ids)])


def _parent(whole, index: dict[int, int]) -> int:
    """Index of the object named by `ispartof`: an id, a list of one id, or an empty list."""
    if isinstance(whole, list):
        whole = whole[0] if whole else None
    return index.get(whole, NO_PARENT)


def instance_items(images: str, annotations: str) -> list[Item]:
    """The annotated images of the instance form; ids are the numbers in the names."""
    items = []
    for name in image_files(annotations, (".png",)):
        stem = os.path.splitext(name)[0]
        number = stem.rsplit("_", 1)[-1]
        if not number.isdigit():
            raise InputError(f"{os.path.join(annotations, name)!r} is not named like ADE_val_00000001.png")
        items.append(
            Item(int(number), stem + ".jpg", (os.path.join(images, stem + ".jpg"), os.path.join(annotations, name)))
        )
    return items


def read_instance(item: Item) -> Scene:
    """The objects of one image of the instance form: the green channel numbers them, 0 is none.

    Raises:
        ValueError: the map is not RGB, or has a different size than the photo.
        OSError: a file is missing.
    """
    photo, labels = item.source
    size = image_size(photo)
    with open_image(labels) as image:
        array = np.asarray(image)
    if array.ndim != 3 or array.shape[:2] != size:
        raise ValueError(f"{labels!r} has shape {array.shape}, expected {(*size, 3)} like its photo")
    numbers = array[:, :, 1]
    values = [int(value) for value in np.unique(numbers) if value]
    return Scene(size, [Entity(m, source_id=v) for m, v in zip(encode_label_map(numbers, values), values)])


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(
        args,
        f"entities_ade20k_{args.form}_{args.split}",
        annotations=f"ADEChallengeData2016/annotations_instance/{FOLDERS[args.split]}",
    )
    info = {"description": f"ADE20K {args.form} {args.split}, class-agnostic", "limit": args.limit}
    remedy = REMEDIES[args.form]
    if args.form == "full":
        require(remedy, args.images)
        items = full_items(args.images)
        if not items:
            raise InputError(f"no ADE_*.json under {args.images!r}. {remedy}")
        info["masks"] = "amodal" if args.amodal else "visible"
        return convert(args.output, info, items[: args.limit or None], lambda item: read_full(item, args.amodal))
    require(remedy, args.images, args.annotations)
    items = instance_items(args.images, args.annotations)
    if not items:
        raise InputError(f"no *.png in {args.annotations!r}. {remedy}")
    return convert(args.output, info, items[: args.limit or None], read_instance)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, ("val", "train"))
    parser.add_argument("--form", choices=("full", "instance"), default="full", help="default: %(default)s")
    parser.add_argument("--amodal", action="store_true", help="full form: hidden parts of objects too")
    return run("prepare_ade20k", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

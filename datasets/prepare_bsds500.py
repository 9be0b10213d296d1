#!/usr/bin/env python
"""Convert BSDS500 to a class-agnostic COCO json with the segments of all annotators.

Expects the unpacked http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz:
    BSR/BSDS500/data/images/{train,val,test}/*.jpg
    BSR/BSDS500/data/groundTruth/{train,val,test}/*.mat

    python datasets/prepare_bsds500.py --split val

Annotators segmented the image independently, some coarsely and some finely. Of duplicate segments of two
annotators (IoU above --duplicate-iou), only that of the first annotator in the file is used. BSDS500 has no hierarchy,
so there are no parents.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.cli.runner import share
from sohes_d2.data.benchmarks.conversion import Entity, Item, Scene, Summary, convert, image_files, read_mat, require
from sohes_d2.errors import InputError
from sohes_d2.structures.images import image_size
from sohes_d2.structures.masks import RLE, encode_label_map
from sohes_d2.structures.nms import without_duplicates

REMEDY = "Get http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/BSR/BSR_bsds500.tgz and unpack it."


def segmentations(variables: dict[str, Any]) -> list[np.ndarray]:
    """The (H, W) label maps of one image, one per annotator; pixels of equal label are one segment."""
    return [np.asarray(annotator["Segmentation"][0, 0]) for annotator in variables["groundTruth"][0]]


def read_image(item: Item, duplicate_iou: float) -> Scene:
    """The distinct segments of one image.

    Raises:
        ValueError: a damaged file, or a segmentation of a different size than the photo.
    """
    photo, truth = item.source
    size = image_size(photo)
    masks: list[RLE] = []
    for labels in read_mat(truth, "a ground truth file of BSDS500", segmentations):
        if labels.shape != size:
            raise ValueError(f"{truth!r} has a segmentation of shape {labels.shape}, its photo {size}")
        masks += encode_label_map(labels, np.unique(labels).tolist())
    # with equal scores, the earlier of two duplicates is kept
    kept = without_duplicates(masks, np.zeros(len(masks)), duplicate_iou)
    return Scene(size, [Entity(masks[k]) for k in kept])


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(args, f"entities_bsds500_{args.split}", annotations=f"BSR/BSDS500/data/groundTruth/{args.split}")
    images, truth = args.images, args.annotations
    require(REMEDY, images, truth)
    items = []
    for name in image_files(images):
        stem = os.path.splitext(name)[0]
        if not stem.isdigit():
            raise InputError(f"{os.path.join(images, name)!r} is not named by a number, as images of BSDS500 are")
        items.append(Item(int(stem), name, (os.path.join(images, name), os.path.join(truth, stem + ".mat"))))
    if not items:
        raise InputError(f"no *.jpg in {images!r}. {REMEDY}")
    info = {
        "description": f"BSDS500 {args.split}, all annotators, class-agnostic",
        "duplicate_iou": args.duplicate_iou,
        "limit": args.limit,
    }
    return convert(args.output, info, items[: args.limit or None], lambda item: read_image(item, args.duplicate_iou))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, ("val", "train", "test"))
    parser.add_argument("--duplicate-iou", type=share, default=0.85, metavar="IOU", help="default: %(default)s")
    return run("prepare_bsds500", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

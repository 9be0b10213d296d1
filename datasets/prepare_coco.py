#!/usr/bin/env python
"""Convert COCO 2017 instances to a class-agnostic COCO json.

Expects, as https://cocodataset.org/#download unpacks:
    coco/annotations/instances_val2017.json
    coco/val2017/*.jpg

    python datasets/prepare_coco.py

Crowd regions keep iscrowd = 1; areas and boxes keep the values of the source.
"""

from __future__ import annotations

import sys

from sohes_d2.cli.prepare import make_parser, run
from sohes_d2.data.builtin import BUILTIN
from sohes_d2.data.conversion import Summary, convert_coco, path_of
from sohes_d2.labels.schema import image_name

REMEDY = (
    "Get http://images.cocodataset.org/zips/val2017.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip and unpack both in coco/"
)
DATASET = BUILTIN["entities_coco_2017_val"]


def body(args) -> Summary:
    """Convert the data set."""
    return convert_coco(
        path_of(args.annotations, args.root, "coco/annotations/instances_val2017.json"),
        path_of(args.output, args.root, DATASET.labels),
        {"description": "COCO instances, class-agnostic", "url": "https://cocodataset.org"},
        limit=args.limit,
        # by the name in the json: URLs in a file of 2014 may point to other folders
        file_name=image_name,
        image_root=None if args.no_images else path_of(args.images, args.root, DATASET.images),
        remedy=REMEDY,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--annotations", metavar="FILE", help="default: coco/annotations/instances_val2017.json")
    parser.add_argument("--images", metavar="DIR", help="default: coco/val2017")
    return run("prepare_coco", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

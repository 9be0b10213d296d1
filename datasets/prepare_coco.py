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

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import Summary, convert_coco
from sohes_d2.labels.schema import image_name

REMEDY = (
    "Get http://images.cocodataset.org/zips/val2017.zip and "
    "http://images.cocodataset.org/annotations/annotations_trainval2017.zip and unpack both in coco/"
)


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(args, "entities_coco_2017_val", annotations="coco/annotations/instances_val2017.json")
    info = {"description": "COCO instances, class-agnostic", "url": "https://cocodataset.org"}
    # by the name in the json: URLs in a file of 2014 may point to other folders
    return convert_coco(args, info, REMEDY, file_name=image_name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run("prepare_coco", make_parser(__doc__), arguments, body)


if __name__ == "__main__":
    sys.exit(main())

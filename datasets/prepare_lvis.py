#!/usr/bin/env python
"""Convert LVIS v1 to a class-agnostic COCO json.

Expects, as https://www.lvisdataset.org/dataset unpacks, and the COCO 2017 images that it annotates:
    lvis/lvis_v1_val.json
    coco/{train2017,val2017}/*.jpg

    python datasets/prepare_lvis.py

LVIS annotates only some classes exhaustively in each image, so entities may be missing.
"""

from __future__ import annotations

import sys

from sohes_d2.cli.prepare import make_parser, run
from sohes_d2.data.builtin import BUILTIN
from sohes_d2.data.conversion import Summary, convert_coco, path_of

REMEDY = (
    "Get lvis_v1_val.json.zip from https://www.lvisdataset.org/dataset into lvis/, and train2017.zip and val2017.zip "
    "from https://cocodataset.org/#download into coco/ (the validation set of LVIS uses images of both)."
)
DATASET = BUILTIN["entities_lvis_v1_val"]


def body(args) -> Summary:
    """Convert the data set."""
    return convert_coco(
        path_of(args.annotations, args.root, "lvis/lvis_v1_val.json"),
        path_of(args.output, args.root, DATASET.labels),
        {"description": "LVIS, class-agnostic", "url": "https://www.lvisdataset.org"},
        limit=args.limit,
        image_root=None if args.no_images else path_of(args.images, args.root, DATASET.images),
        remedy=REMEDY,
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__)
    parser.add_argument("--annotations", metavar="FILE", help="default: lvis/lvis_v1_val.json")
    parser.add_argument("--images", metavar="DIR", help="folder with train2017 and val2017 (default: coco)")
    return run("prepare_lvis", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

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

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import Summary, convert_coco

REMEDY = (
    "Get lvis_v1_val.json.zip from https://www.lvisdataset.org/dataset into lvis/, and train2017.zip and val2017.zip "
    "from https://cocodataset.org/#download into coco/ (the validation set of LVIS uses images of both)."
)


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(args, "entities_lvis_v1_val", annotations="lvis/lvis_v1_val.json")
    return convert_coco(args, {"description": "LVIS, class-agnostic", "url": "https://www.lvisdataset.org"}, REMEDY)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run("prepare_lvis", make_parser(__doc__), arguments, body)


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Convert PACO-LVIS to a class-agnostic COCO json with parents of parts.

Expects, as https://github.com/facebookresearch/paco describes, and the COCO 2017 images that it annotates:
    paco/paco_lvis_v1_{train,val,test}.json
    coco/{train2017,val2017}/*.jpg

    python datasets/prepare_paco.py --split test

An annotation is an object if its `obj_ann_id` is its own id, otherwise a part of the object `obj_ann_id`.
"""

from __future__ import annotations

import sys

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.data.benchmarks.conversion import Summary, convert_coco
from sohes_d2.labels.schema import image_name
from sohes_d2.structures.forest import NO_PARENT

REMEDY = (
    "Get https://dl.fbaipublicfiles.com/paco/annotations/paco_lvis_v1.zip and unpack it in paco/, and train2017.zip "
    "and val2017.zip from https://cocodataset.org/#download in coco/."
)


def object_of_each(annotations: list[dict]) -> list[int]:
    """Index of the object of each part among the annotations of one image; -1 for objects.

    Raises:
        ValueError: an annotation names an object that is not in its image.
    """
    index = {annotation["id"]: k for k, annotation in enumerate(annotations)}
    parents = []
    for annotation in annotations:
        whole = annotation.get("obj_ann_id", annotation["id"])
        if whole not in index:
            raise ValueError(f"annotation {annotation['id']} is a part of {whole}, which its image does not have")
        parents.append(NO_PARENT if whole == annotation["id"] else index[whole])
    return parents


def body(args) -> Summary:
    """Convert the data set."""
    fill_paths(args, f"entities_paco_lvis_v1_{args.split}", annotations=f"paco/paco_lvis_v1_{args.split}.json")
    info = {"description": f"PACO-LVIS {args.split}, class-agnostic", "url": "https://github.com/facebookresearch/paco"}
    return convert_coco(args, info, REMEDY, image_name, object_of_each)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run("prepare_paco", make_parser(__doc__, ("test", "train", "val")), arguments, body)


if __name__ == "__main__":
    sys.exit(main())

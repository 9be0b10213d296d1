#!/usr/bin/env python
"""Merge COCO val2017 and LVIS v1 val: the annotations of both, on images annotated by both.

Expects the files of prepare_coco.py and prepare_lvis.py:
    coco/annotations/instances_val2017.json
    lvis/lvis_v1_val.json
    coco/val2017/*.jpg

    python datasets/prepare_coco_lvis.py

COCO annotates all objects of its 80 classes, LVIS many more classes but not all objects; together they miss fewer. If a
COCO mask and an LVIS mask are the same object (IoU of at least --duplicate-iou), the one of LVIS is kept, with finer
outlines. Crowd regions of COCO are always kept. The matching and its default are this project's choice.
"""

from __future__ import annotations

import sys

from sohes_d2.cli.prepare import fill_paths, make_parser, run
from sohes_d2.cli.runner import share
from sohes_d2.data.benchmarks.conversion import (
    Entity,
    Item,
    Scene,
    Summary,
    coco_entity,
    coco_file_name,
    convert,
    fingerprint,
    require,
    require_images,
)
from sohes_d2.errors import InputError
from sohes_d2.labels.reader import LabelStream
from sohes_d2.labels.schema import image_size
from sohes_d2.structures.masks import iou_matrix

REMEDY = "See datasets/prepare_coco.py and datasets/prepare_lvis.py for where to get it."


def union(coco: list[Entity], lvis: list[Entity], duplicate_iou: float) -> list[Entity]:
    """All entities of LVIS, and those of COCO that are not in LVIS.

    Args:
        coco, lvis: entities of one image.
        duplicate_iou: smallest IoU of duplicates, in (0, 1].
    """
    outlines = [entity.mask for entity in lvis if entity.mask is not None]

    def is_new(entity: Entity) -> bool:
        # keep entities without mask, to be counted as damaged
        if entity.mask is None or entity.iscrowd:
            return True
        return iou_matrix([entity.mask], outlines).max(initial=0) < duplicate_iou

    return lvis + [entity for entity in coco if is_new(entity)]


def body(args) -> Summary:
    """Convert the data set."""
    if not 0 < args.duplicate_iou <= 1:
        raise InputError(f"--duplicate-iou must be in (0, 1], got {args.duplicate_iou}")
    fill_paths(
        args,
        "entities_coco_lvis_val",
        coco="coco/annotations/instances_val2017.json",
        lvis="lvis/lvis_v1_val.json",
    )
    require(REMEDY, args.coco, args.lvis)
    coco, lvis = LabelStream(args.coco), LabelStream(args.lvis)
    in_coco = {image["id"] for image in coco.images}
    both = [image for image in lvis.images if image["id"] in in_coco][: args.limit or None]
    items = [Item(image["id"], coco_file_name(image), image_size(image, args.lvis)) for image in both]
    if not items:
        raise InputError(f"{args.coco!r} and {args.lvis!r} have no image in common. {REMEDY}")
    if not args.no_images:
        require_images(args.images, [item.file_name for item in items], REMEDY)

    def read(item: Item) -> Scene:
        parts = [[coco_entity(a, item.source) for a in file.annotations(item.image_id)] for file in (coco, lvis)]
        entities = union(*parts, args.duplicate_iou)
        for entity in entities:
            entity.source_id = None  # ids of the two files may collide
        return Scene(item.source, entities)

    info = {
        "description": "COCO val2017 and LVIS v1 val, class-agnostic",
        "duplicate_iou": args.duplicate_iou,
        "coco": fingerprint(args.coco),
        "lvis": fingerprint(args.lvis),
        "limit": args.limit,
    }
    return convert(args.output, info, items, read)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = make_parser(__doc__, paths=("coco", "lvis", "images"))
    parser.add_argument("--duplicate-iou", type=share, default=0.8, metavar="IOU", help="default: %(default)s")
    return run("prepare_coco_lvis", parser, arguments, body)


if __name__ == "__main__":
    sys.exit(main())

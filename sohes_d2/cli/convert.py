"""Convert labels to and from the formats of annotation and training tools.

    sohes convert --labels labels.json --to cvat --output annotations.xml
    sohes convert --labels labels.json --to yolo --images photos/ --output yolo/ --entities 20
    sohes convert --labels annotations.xml --from cvat --output labels.json

Formats: labelstudio, cvat, fiftyone (one file; masks are exact), labelme, yolo, voc (a folder; masks are polygons that
deviate from the outline by at most --tolerance pixels). All but yolo keep scores and parents. --to converts from a COCO
json, --from to one, which has no parents if the format has none. --to yolo and voc copy the photos of --images to the
output; --from yolo reads the sizes of the photos from --images.

Exit code: 0 converted, 3 some masks were skipped (with reasons), 2 the files or arguments cannot be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..structures.files import check_output
from .runner import EXIT_DONE, EXIT_SKIPPED, add_selection_options, make_main, tool_parser


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes convert")
    add = parser.add_argument
    add("--labels", "--json", required=True, type=Path, metavar="FILE|DIR", help="labels to convert")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--to", metavar="FORMAT", help="labelstudio, cvat, labelme, yolo, voc or fiftyone")
    direction.add_argument("--from", dest="source", metavar="FORMAT", help="source format; writes COCO json")
    add("--output", required=True, type=Path, metavar="FILE|DIR", help="file or folder, depending on the format")
    add("--images", type=Path, metavar="DIR", help="folder of the photos; file names are relative to it")
    what = "allowed deviation of polygons from the outline; 0: exact (default: %(default)s)"
    add("--tolerance", type=float, default=0.5, metavar="PIXELS", help=what)
    what = "prefix of photo names for Label Studio (default: %(default)s)"
    add("--image-prefix", default="/data/local-files/?d=", metavar="URL", help=what)
    add_selection_options(parser, entities=0)
    args = parser.parse_args(arguments)
    if not 0 <= args.tolerance < float("inf"):
        parser.error(f"--tolerance must be 0 or more, got {args.tolerance}")
    if args.images is not None and not args.images.is_dir():
        parser.error(f"--images {args.images} is not a folder")
    return args


def convert(args: argparse.Namespace) -> int:
    """Convert; returns the exit code."""
    from ..errors import InputError
    from ..labels.formats import format_module
    from ..labels.formats.base import Options, read_photos, write_photos
    from ..labels.reader import read_label_file
    from ..labels.schema import Problems
    from ..structures.entity import Selection

    name = args.to or args.source
    module = format_module(name)
    options = Options(args.tolerance, args.images, args.image_prefix)
    selection = Selection(args.entities, args.min_score, args.max_depth)
    if not args.labels.exists():
        raise InputError(f"--labels {str(args.labels)!r} does not exist")
    if args.source:
        check_output(args.output, folder=False)
        photos = module.read(args.labels, options)
        for photo in photos:
            photo.forest = selection(photo.forest)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_photos(args.output, photos, name)
        problems = Problems()
    else:
        check_output(args.output, folder=module.IS_FOLDER)
        labels = read_label_file(args.labels)
        problems = labels.problems
        photos = read_photos(labels, selection, problems)
        (args.output if module.IS_FOLDER else args.output.parent).mkdir(parents=True, exist_ok=True)
        module.write(photos, args.output, options)
    masks = sum(len(photo.forest) for photo in photos)
    print(f"{args.output}: {len(photos)} images, {masks} masks; of {name}: {module.LOSSES}")
    if problems:
        print(problems.summary(), file=sys.stderr)
    return EXIT_SKIPPED if problems else EXIT_DONE


main = make_main("sohes convert", parse_arguments, convert)

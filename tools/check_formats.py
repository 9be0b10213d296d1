#!/usr/bin/env python
"""Check conversions to the formats of `sohes convert` with the formats' libraries; prints the table of docs/CONVERT.md.

    python tools/check_formats.py
    python tools/check_formats.py --labels labels.json --images photos/ --tolerance 1

Labels are written by this package and read by the library of the format ("out"), then written by that library and read
by this package ("in"); "own" is this package both ways. Libraries that are not installed are skipped: supervision
(YOLO, VOC), datumaro (CVAT, VOC), label-studio-sdk, labelme, fiftyone. Their dependencies conflict with one another and
with this package; a separate environment needs them and numpy, opencv, pycocotools, msgspec, filelock.

Without --labels, photos with wholes, parts, holes and masks of two components are generated.

Exit code: 0 compared, 2 usage error.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sohes_d2.cli.runner import make_main, tool_parser

FORMATS = ("labelstudio", "cvat", "fiftyone", "labelme", "yolo", "voc")

HEADER = """\
| format | way | by | found | mean IoU | least IoU | with holes | of several components | score | parent |
|---|---|---|--:|--:|--:|--:|--:|--:|--:|"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    add = parser.add_argument
    add("--labels", type=Path, metavar="LABELS.json", help="COCO json (default: generated)")
    add("--images", type=Path, metavar="DIR", help="its photos")
    add("--tolerance", type=float, default=0.5, metavar="PIXELS", help="tolerance of polygons (default: %(default)s)")
    add("--formats", nargs="+", choices=FORMATS, default=FORMATS, help="default: all")
    args = parser.parse_args(arguments)
    if (args.labels is None) != (args.images is None):
        parser.error("--labels and --images go together")
    return args


def generate(folder: Path, count: int = 4) -> list[Any]:
    """Generate photos with an ellipse and its parts, a ring (a hole), a mask of two components, a bar of one row."""
    import numpy as np
    from PIL import Image

    from sohes_d2.labels.formats.base import Photo
    from sohes_d2.structures.forest import Forest
    from sohes_d2.structures.masks import encode_masks

    rng = np.random.default_rng(0)
    photos = []
    for k in range(count):
        size = (120 + 8 * k, 160)
        y, x = np.mgrid[: size[0], : size[1]]

        def ellipse(cy, cx, ry, rx, y=y, x=x):
            return ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1

        whole = ellipse(40, 50, 30 + k, 38)
        part = ellipse(38, 60, 14, 11 + k)
        ring = ellipse(85, 115, 25, 30) & ~ellipse(85, 115, 12 + k, 14)
        pair = ellipse(20, 120, 12, 9 + k) | ellipse(24, 148, 8, 7)
        bar = (y == 100 + k) & (x > 10) & (x < 70)
        masks = [whole, part, part & (x > 60), ring, ring & (y < 80), pair, bar]
        forest = Forest(encode_masks(masks), [-1, 0, 1, -1, 3, -1, -1], size, scores=rng.uniform(0.1, 1, 7).round(4))
        name = f"photo{k}.png"
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
        photos.append(Photo(name, forest))
    return photos


def compare(photos: list[Any], found: list[dict[str, Any]]) -> list[float | None]:
    """Compare converted masks with the originals.

    Args:
        photos: the originals.
        found: per photo, "masks" (RLEs), and "scores" and "parents" (indices, -1 for a whole) in that order, or None.

    Returns:
        Fraction of the masks that are found; mean and least IoU of these; mean IoU of masks with holes, and of those of
        several components (NaN if there are none); fractions of equal scores and of equal parents, None if the library
        has none.
    """
    import numpy as np

    from sohes_d2.structures.masks import iou_matrix

    best, holes, parts, scores, parents, total = [], [], [], [], [], 0
    for photo, other in zip(photos, found):
        forest = photo.forest
        total += len(forest)
        ious = iou_matrix(forest.masks, other["masks"])
        same = len(other["masks"]) == len(forest)  # most libraries keep the order
        places = np.arange(len(forest)) if same else ious.argmax(1) if ious.size else np.zeros(0, int)
        for k, place in enumerate(places):
            iou = float(ious[k, place])
            if iou < 0.05:
                continue
            best.append(iou)
            components, with_hole = shape_of(forest.masks[k])
            holes += [iou] if with_hole else []
            parts += [iou] if components > 1 else []
            if other.get("scores") is not None:
                scores.append(abs(other["scores"][place] - float(forest.scores[k])) < 1e-4)
            if other.get("parents") is not None and same:
                parents.append(other["parents"][place] == forest.parents[k])

    def mean(values):
        return float(np.mean(values)) if values else float("nan")

    ious = (len(best) / max(1, total), mean(best), min(best, default=float("nan")), mean(holes), mean(parts))
    return [*ious, mean(scores) if scores else None, mean(parents) if parents else None]


def shape_of(mask: Any) -> tuple[int, bool]:
    """Number of components of a mask, and whether it has a hole."""
    import cv2
    import numpy as np

    from sohes_d2.structures.masks import decode_mask

    _, links = cv2.findContours(decode_mask(mask).view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = links[0][:, 3] == -1
    return int(outer.sum()), bool((~outer).any())


def of_photos(photos: list[Any]) -> list[dict[str, Any]]:
    """Convert photos read by this package to the input of `compare`."""
    return [
        {
            "masks": photo.forest.masks,
            "scores": photo.forest.scores.tolist() if photo.has_scores else None,
            "parents": photo.forest.parents.tolist() if photo.has_parents else None,
        }
        for photo in photos
    ]


# ----------------------------------------------------------------------------------------------------------------------
# The libraries. Each check gets photos, their folder, the written files, and an output folder; it yields (way, name of
# the library, masks found).

Check = Callable[[list[Any], Path, Path, Path], Iterator[tuple[str, str, list[dict[str, Any]]]]]


def with_label_studio(photos, images, written, folder):
    """label_studio_sdk.converter.brush decodes the regions of this package, and encodes masks for it to read."""
    from label_studio_sdk.converter import brush

    from sohes_d2.labels.formats.base import Options
    from sohes_d2.labels.formats.labelstudio import read
    from sohes_d2.labels.writer import read_json
    from sohes_d2.structures.files import write_json
    from sohes_d2.structures.masks import decode_mask, encode_masks

    tasks = read_json(written)
    found = []
    for task, photo in zip(tasks, photos):
        results = task["predictions"][0]["result"]
        regions = [result for result in results if result["type"] == "brushlabels"]
        above = {result["from_id"]: result["to_id"] for result in results if result["type"] == "relation"}
        places = {region["id"]: k for k, region in enumerate(regions)}
        pictures = [brush.decode_rle(r["value"]["rle"]).reshape(*photo.forest.image_size, 4)[..., 3] for r in regions]
        found.append(
            {
                "masks": encode_masks(pictures),
                "scores": [region["score"] for region in regions],
                "parents": [places.get(above.get(region["id"]), -1) for region in regions],
            }
        )
        for region, mask in zip(regions, photo.forest.masks):
            region["value"]["rle"] = brush.mask2rle(decode_mask(mask) * 255)
    yield "out", "label-studio-sdk", found
    write_json(folder / "tasks.json", tasks)
    yield "in", "label-studio-sdk", of_photos(read(folder / "tasks.json", Options()))


def with_datumaro(photos, images, written, folder):
    """datumaro reads the CVAT or VOC files of this package."""
    import datumaro

    from sohes_d2.structures.masks import encode_masks

    kind = "voc" if written.is_dir() else "cvat"
    if kind == "cvat":  # needs the photos beside the file
        shutil.copytree(images, folder / "datumaro" / "images")
        shutil.copy(written, folder / "datumaro" / "annotations.xml")
        written = folder / "datumaro"
    dataset = datumaro.Dataset.import_from(str(written), kind)
    by_name = {Path(item.id).name: item for item in dataset}
    found = []
    for photo in photos:
        masks = [a for a in by_name[Path(photo.file_name).stem].annotations if a.type.name == "mask"]
        masks.sort(key=lambda a: int(float(a.attributes.get("id", 0))))
        keys = [int(float(a.attributes.get("id", 0))) for a in masks]
        has_keys = all(keys)
        found.append(
            {
                "masks": encode_masks([a.image for a in masks]),
                "scores": [float(a.attributes["score"]) for a in masks] if has_keys else None,
                "parents": [int(float(a.attributes["parent"])) - 1 for a in masks] if has_keys else None,
            }
        )
    yield "out", "datumaro", found


def with_supervision(photos, images, written, folder):
    """supervision reads the YOLO or VOC folder of this package, and writes one for it to read."""
    import supervision

    from sohes_d2.labels.formats import format_module
    from sohes_d2.labels.formats.base import Options
    from sohes_d2.structures.masks import encode_masks

    is_yolo = (written / "data.yaml").is_file()
    if is_yolo:
        places = (str(written / "images"), str(written / "labels"), str(written / "data.yaml"))
        dataset = supervision.DetectionDataset.from_yolo(*places, force_masks=True)
    else:
        places = (str(written / "JPEGImages"), str(written / "Annotations"))
        dataset = supervision.DetectionDataset.from_pascal_voc(*places, force_masks=True)
    by_name = {Path(path).name: detections for path, _, detections in dataset}
    found = []
    for photo in photos:
        masks = by_name[Path(photo.file_name).name].mask
        found.append({"masks": [] if masks is None else encode_masks(masks)})
    yield "out", "supervision", found
    target = folder / "supervision"
    if is_yolo:
        dataset.as_yolo(
            str(target / "images"), str(target / "labels"), str(target / "data.yaml"), approximation_percentage=0.0
        )
    else:
        dataset.as_pascal_voc(str(target / "JPEGImages"), str(target / "Annotations"), approximation_percentage=0.0)
    again = {photo.file_name: photo for photo in format_module("yolo" if is_yolo else "voc").read(target, Options())}
    yield "in", "supervision", of_photos([again[Path(photo.file_name).name] for photo in photos])


def with_labelme(photos, images, written, folder):
    """labelme opens the files of this package, draws the shapes, and saves files for it to read."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    import labelme
    import numpy as np
    from labelme.utils import shape_to_mask

    from sohes_d2.labels.formats.base import Options
    from sohes_d2.labels.formats.labelme import read
    from sohes_d2.structures.masks import encode_masks

    found = []
    (folder / "labelme_again").mkdir()
    for photo in photos:
        path = (written / photo.file_name).with_suffix(".json")
        opened = labelme.LabelFile(str(path))
        height, width = photo.forest.image_size
        masks: dict[int, Any] = {}
        facts = {}
        for shape in opened.shapes:
            drawn = shape_to_mask((height, width), shape["points"], shape["shape_type"])
            masks[shape["group_id"]] = masks.get(shape["group_id"], np.zeros_like(drawn)) | drawn
            facts[shape["group_id"]] = dict(pair.split("=") for pair in shape["description"].split())
        found.append(
            {
                "masks": encode_masks(list(masks.values())),
                "scores": [float(facts[key]["score"]) for key in masks],
                "parents": [int(facts[key]["parent"]) - 1 for key in masks],
            }
        )
        shapes = [{key: value for key, value in shape.items() if key != "other_data"} for shape in opened.shapes]
        opened.save(str(folder / "labelme_again" / path.name), shapes, photo.file_name, height, width)
    yield "out", "labelme", found
    yield "in", "labelme", of_photos(read(folder / "labelme_again", Options()))


def with_fiftyone(photos, images, written, folder):
    """fiftyone converts the documents of this package to samples, and back for it to read; without its database."""
    import fiftyone
    from bson import json_util

    from sohes_d2.labels.formats.base import Options
    from sohes_d2.labels.formats.fiftyone import read
    from sohes_d2.structures.masks import encode_masks

    documents = json_util.loads(written.read_text())["samples"]
    samples = [fiftyone.Sample.from_dict(document) for document in documents]
    found = []
    for sample in samples:
        detections = sample.entities.detections
        frame = (sample.metadata.width, sample.metadata.height)
        pictures = [d.to_segmentation(frame_size=frame).mask for d in detections]
        found.append(
            {
                "masks": encode_masks(pictures),
                "scores": [d.confidence for d in detections],
                "parents": [d.parent - 1 for d in detections],
            }
        )
    yield "out", "fiftyone", found
    path = folder / "fiftyone.json"
    path.write_text(json_util.dumps({"samples": [sample.to_dict() for sample in samples]}))
    yield "in", "fiftyone", of_photos(read(path, Options()))


CHECKS: dict[str, tuple[Check, ...]] = {
    "labelstudio": (with_label_studio,),
    "cvat": (with_datumaro,),
    "fiftyone": (with_fiftyone,),
    "labelme": (with_labelme,),
    "yolo": (with_supervision,),
    "voc": (with_supervision, with_datumaro),
}


def check_format(
    name: str, photos: list[Any], images: Path, folder: Path, tolerance: float
) -> Iterator[tuple[str, str, list[float | None]]]:
    """Write the photos in a format and compare them as read by this package and by the installed libraries.

    Yields:
        Way, name of the library, and the result of `compare`.
    """
    from sohes_d2.labels.formats import format_module
    from sohes_d2.labels.formats.base import Options

    form = format_module(name)
    written = folder / (name if form.IS_FOLDER else f"{name}.xml" if name == "cvat" else f"{name}.json")
    options = Options(tolerance, images)
    form.write(photos, written, options)
    again = {photo.file_name: photo for photo in form.read(written, options)}
    yield "own", "this package", compare(photos, of_photos([again[photo.file_name] for photo in photos]))
    for check in CHECKS[name]:
        try:
            results = list(check(photos, images, written, folder))
        except ModuleNotFoundError as error:
            print(f"{name}: skipped, {error}", file=sys.stderr)
            continue
        for way, by, found in results:
            yield way, by, compare(photos, found)


def check(args: argparse.Namespace) -> None:
    """Compare all formats and print the table."""
    from sohes_d2.labels.formats.base import read_photos
    from sohes_d2.labels.reader import read_label_file
    from sohes_d2.labels.schema import Problems
    from sohes_d2.structures.entity import Selection

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = args.images or folder / "photos"
        if args.labels:
            photos = read_photos(read_label_file(args.labels), Selection(), Problems())
        else:
            images.mkdir()
            photos = generate(images)
        lines = []
        for form in args.formats:
            for way, by, numbers in check_format(form, photos, images, folder, args.tolerance):
                texts = ("" if x is None else "-" if x != x else f"{100 * x:.1f}" for x in numbers)
                lines.append(f"| {form} | {way} | {by} | {' | '.join(texts)} |")
    print("\n".join([HEADER, *lines]))


main = make_main("check_formats", parse_arguments, check)


if __name__ == "__main__":
    sys.exit(main())

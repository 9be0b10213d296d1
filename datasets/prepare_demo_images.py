#!/usr/bin/env python
"""Write the photos of the demo, which are part of the installed scikit-image package, so nothing is downloaded.

Only photos whose licence allows everybody to use and show them are written (see datasets/README.md). A file is
skipped if its checksum differs from that of the file whose licence was checked.

    python datasets/prepare_demo_images.py --output output/demo/images

Exit code: 0 all photos written, 3 some skipped (with reasons), 2 none could be written.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from sohes_d2.cli.runner import EXIT_DONE, EXIT_SKIPPED, EXIT_USAGE, at_least, make_main, tool_parser
from sohes_d2.errors import InputError
from sohes_d2.structures.files import check_output, write_bytes, write_picture, write_text
from sohes_d2.structures.images import open_image

DEFAULT_OUTPUT = "output/demo/images"
DEFAULT_MAX_SIDE = 640
ATTRIBUTION = "ATTRIBUTION.txt"


@dataclass(frozen=True)
class Photo:
    """A file of scikit-image's data folder, with its origin as documented in ``skimage.data`` (version 0.26)."""

    file_name: str
    sha256: str
    what: str
    source: str
    licence: str


PHOTOS = (
    Photo(
        "astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        "Astronaut Eileen Collins",
        "NASA Great Images database, https://flic.kr/p/r9qvLn",
        "public domain, no known copyright restrictions",
    ),
    Photo(
        "camera.png",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "Photographer with a tripod (grey)",
        "Lav Varshney, https://github.com/scikit-image/scikit-image/issues/3927",
        "CC0 by the photographer",
    ),
    Photo(
        "chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "Chelsea the cat",
        "Stefan van der Walt",
        "CC0 by the photographer",
    ),
    Photo(
        "coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        "A cup of coffee",
        "Rachel Michetti, courtesy of Pikolo Espresso Bar",
        "CC0 by the photographer",
    ),
    Photo(
        "coins.png",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "Greek coins from Pompeii (grey)",
        "Brooklyn Museum, https://www.brooklynmuseum.org/opencollection/archives/image/51611",
        "no known copyright restrictions",
    ),
    Photo(
        "hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "Hubble eXtreme Deep Field",
        "NASA, http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "public domain (NASA media guidelines)",
    ),
    Photo(
        "retina.jpg",
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "A human retina",
        "Mikael Haggstrom, https://commons.wikimedia.org/wiki/File:Fundus_photograph_of_normal_left_eye.jpg",
        "CC0 1.0",
    ),
    Photo(
        "rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        "Falcon 9 with DSCOVR before its launch",
        "SpaceX, https://www.flickr.com/photos/spacexphotos/16511594820/",
        "public domain",
    ),
)


def write_photos(source: Path, output: Path, max_side: int) -> tuple[list[Path], list[str]]:
    """Copy the photos, downsized if they are larger than ``max_side`` pixels, and write their authors and licences.

    Args:
        source: scikit-image's data folder.
        output: folder to write to; created if missing.
        max_side: longest side in pixels; 0 for no limit.

    Returns:
        The files written, and a line with the reason for every skipped photo.
    """
    output.mkdir(parents=True, exist_ok=True)
    written, left_out, lines = [], [], []
    for photo in PHOTOS:
        path = source / photo.file_name
        if not path.is_file():
            left_out.append(f"{photo.file_name}: not in {source}")
            continue
        if hashlib.sha256(path.read_bytes()).hexdigest() != photo.sha256:
            left_out.append(f"{photo.file_name}: {path} is not the file whose licence was checked (its sha256 differs)")
            continue
        target = output / photo.file_name
        shrunk = _write(path, target, max_side)
        written.append(target)
        lines.append(
            f"{photo.file_name}\n  {photo.what}\n  from: {photo.source}\n  licence: {photo.licence}\n  {shrunk}\n"
        )
    write_text(
        output / ATTRIBUTION,
        "Photos from the scikit-image package (skimage/data), made and licensed as follows.\n\n" + "\n".join(lines),
    )
    return written, left_out


def _write(path: Path, target: Path, max_side: int) -> str:
    """Write one photo; returns a note on its changes."""
    with open_image(path) as image:
        before = image.size
        after = tuple(max(1, round(v * min(1, (max_side or max(before)) / max(before)))) for v in before)
        shrunk = image.resize(after, Image.LANCZOS) if after != before else None
    if shrunk is None:
        write_bytes(target, path.read_bytes())
        return "unchanged"
    write_picture(target, shrunk, "PNG" if target.suffix == ".png" else "JPEG", quality=95)
    return f"downsized from {before[0]} x {before[1]} to {after[0]} x {after[1]} pixels"


def skimage_data_folder() -> Path:
    """The folder of photos of the installed scikit-image, found without importing it.

    Raises:
        InputError: scikit-image is not installed, or without its data.
    """
    spec = find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the photos of the demo need scikit-image, which is not installed: pip install scikit-image")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    if not folder.is_dir():
        raise InputError(f"this scikit-image has no data folder ({folder}): pip install --force-reinstall scikit-image")
    return folder


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__)
    parser.add_argument("--output", default=DEFAULT_OUTPUT, type=Path, help="folder to write to (default: %(default)s)")
    parser.add_argument(
        "--max-side",
        default=DEFAULT_MAX_SIDE,
        type=at_least(0),
        metavar="PIXELS",
        help="downsize larger photos to this longest side, for a fast demo; 0: no limit (default: %(default)s)",
    )
    return parser.parse_args(arguments)


def write(args: argparse.Namespace) -> int:
    """Write the photos; returns the exit code."""
    check_output(args.output, folder=True)
    written, left_out = write_photos(skimage_data_folder(), args.output, args.max_side)
    for line in left_out:
        print(f"skipped {line}", file=sys.stderr)
    print(f"{len(written)} photos in {args.output}; their authors and licences in {args.output / ATTRIBUTION}")
    return EXIT_USAGE if not written else EXIT_SKIPPED if left_out else EXIT_DONE


main = make_main("prepare_demo_images", parse_arguments, write)


if __name__ == "__main__":
    sys.exit(main())

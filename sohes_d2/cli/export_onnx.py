"""Export a trained model to a file that runs without this package and Detectron2.

    sohes export-onnx output/instruction --size 640 960 --output output/exported/model.onnx
    sohes export-onnx output/instruction --size 640 960 --output model.onnx model.pt2 --image photos/*.jpg

MODEL is a folder with config.yaml and weights: OUTPUT_DIR of a training of phase 2, or the output of export_model.py,
which extracts one model from a checkpoint of phase 3. The suffix selects the format:

    .onnx   ONNX, opset 18, float32, weights inside (so at most 2 GB); needs `pip install 'sohes_d2[onnx]'`.
            tools/run_onnx.py is an example that uses only numpy, Pillow and onnxruntime.
    .pt2    a program of torch.export, float32; torch.export.load(FILE).module() runs it, using only torch.

Input and outputs of both, for Q queries (MODEL.MASK_FORMER.NUM_OBJECT_QUERIES):

    image       (1, 3, H, W)        float32 RGB, 0..255; padded with the mean colour (metadata)
    logits      (1, Q, 2)           entity and "no entity"
    masks       (1, Q, H/4, W/4)    logits
    ancestors   (1, Q, Q)           [i, j]: probability that i is an ancestor of j; only with an ancestor head

Each file is compared with the model on two synthetic scenes and the photos of --image, and is kept only if no output
differs by more than --tolerance. The largest differences are printed.

Not supported: image sizes other than --size (the graph is fixed to it; photos of another shape are padded), batches,
half precision, GPU-only operators (files are written and checked on the CPU), dynamic shapes, training, TTA (TEST.TTA),
crops (TEST.CROPS), masks of phase 1 (TEST.MASKS_FROM), and decoding to full-size masks and a forest, with or without
refined outlines (TEST.REFINEMENT).

Exit code: 0 written, 1 a file differs from the model and was not kept, 2 the model or the arguments cannot be used.
"""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from ..errors import InputError
from ..structures.files import check_output
from .runner import make_main, tool_parser

if TYPE_CHECKING:
    import numpy as np


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with code 2 if it is invalid."""
    parser = tool_parser(__doc__, prog="sohes export-onnx")
    add = parser.add_argument
    add("model", metavar="MODEL", help="a folder with config.yaml and weights")
    add("--weights", metavar="FILE", help="weights to load instead of those in the folder")
    add("--output", required=True, nargs="+", metavar="FILE", help=".onnx and .pt2 files to write")
    add("--size", required=True, nargs=2, type=int, metavar=("H", "W"), help="size of the input, multiples of 32")
    add("--image", nargs="+", default=[], metavar="FILE", help="photos for the check, in addition to synthetic scenes")
    add("--tolerance", type=float, default=1e-3, metavar="D", help="largest difference allowed (default: %(default)s)")
    return parser.parse_args(arguments)


def read_photo(path: str, size: tuple[int, int]) -> np.ndarray:
    """Read a photo and stretch it to ``size`` (H, W); returns (H, W, 3) uint8 RGB."""
    import numpy as np
    from PIL import Image

    from ..structures.images import read_image

    return np.asarray(Image.fromarray(read_image(path)).resize(size[::-1], Image.Resampling.BILINEAR))


def export(args: argparse.Namespace) -> None:
    """Export and print the differences from the model."""
    # imported after parsing: these take seconds
    from ..inference.export import check_paths, describe, export_segmenter
    from ..inference.predictor import SOHESPredictor

    size = args.size[0], args.size[1]
    for path in args.output:
        check_output(path, folder=False)
    if size[0] < 1 or size[1] < 1:
        raise InputError(f"--size must be at least 32 pixels, got {size[0]} {size[1]}")
    check_paths(args.output)
    photos = [read_photo(path, size) for path in args.image]
    predictor = SOHESPredictor(args.model, weights=args.weights, device="cpu")
    results = export_segmenter(predictor.model, args.output, size, predictor.cfg.INPUT.FORMAT, photos, args.tolerance)
    for path, differences in results.items():
        print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB, differs by at most {describe(differences)}")


main = make_main("sohes export-onnx", parse_arguments, export)

"""CascadePSP refinement (Cheng et al., CVPR 2020), as SOHES used it. NOT free of human labels.

CascadePSP's network was trained on masks drawn by people. Labels refined with it are no longer purely self-supervised;
the output file records the refiner, and choosing it logs a warning. It serves to reproduce the paper only.

Needs the optional package ``segmentation-refinement``: ``pip install 'sohes_d2[cascadepsp]'``, and its weights file.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import numpy as np

from .base import REFINERS, Refiner

MISSING = (
    "refiner 'cascadepsp' needs the package segmentation-refinement, which is not installed: "
    "pip install 'sohes_d2[cascadepsp]', or choose the training-free refiner 'guided'"
)
WEIGHTS_URL = "https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model"
DEFAULT_FOLDER = "~/.segmentation-refinement"  # the package's own folder
FILE_NAME = "model"  # the package takes a folder, and expects the file in it under this name

THINNEST = 8  # shortest side of a crop at its working size, in pixels, that the network accepts

logger = logging.getLogger(__name__)


@REFINERS.register()
class cascadepsp(Refiner):  # noqa: N801 (the class is named as the config names it)
    """CascadePSP through its authors' package.

    Args:
        weights: folder with the weights in a file named ``model``, or that file itself; empty for the package's own
            folder (~/.segmentation-refinement); "download" to let the package fetch them into its folder.
        device: "cpu", "cuda" or "cuda:0".
        fast: only the global step, which is faster and coarser.
        max_side: longest side, in pixels, to which every crop is resized for the network (the package's L); at least
            128.

    Raises:
        ImportError: the package is not installed; the message names the command.
        FileNotFoundError: no weights; the message names the file and the folder.
        RuntimeError: the weights could not be downloaded or loaded.
        ValueError: ``max_side`` is too small.
    """

    training_free = False

    def __init__(self, *, weights: str = "", device: str = "cpu", fast: bool = False, max_side: int = 900):
        try:
            from segmentation_refinement import Refiner as Network
        except ImportError as error:
            raise ImportError(MISSING) from error
        if max_side < 128:
            raise ValueError(f"max_side must be at least 128, or the network's pooling fails; got {max_side}")
        logger.warning(
            "The refiner 'cascadepsp' uses weights that were trained on masks drawn by people: labels refined with it "
            "are not purely self-supervised. Use 'guided' or 'crf' for labels without any supervision."
        )
        download = weights == "download"
        folder = Path(DEFAULT_FOLDER if download or not weights else weights).expanduser()
        if folder.name == FILE_NAME and not folder.is_dir():
            folder = folder.parent
        file = folder / FILE_NAME
        if not download and not file.is_file():
            raise FileNotFoundError(
                f"no CascadePSP weights at {file}. Download {WEIGHTS_URL} and save it there "
                f"(the file's name is '{FILE_NAME}'), or pass the folder that has it as weights, "
                "or weights='download' to fetch it now"
            )
        existed = file.is_file()
        try:
            self._network = Network(device=device, model_folder=str(folder), download_and_check_model=download)
        except (OSError, RuntimeError, AssertionError, EOFError, KeyError, pickle.UnpicklingError) as error:
            if download and not existed:
                file.unlink(missing_ok=True)  # the package leaves an empty file when its download fails
                action = f"download {WEIGHTS_URL} by hand and save it as {file}"
            else:
                action = f"replace {file} by the file from {WEIGHTS_URL}"
            raise RuntimeError(f"CascadePSP's weights could not be loaded ({error}); {action}") from error
        self.fast = fast
        self.max_side = max_side

    def reach(self, cell: float) -> int:
        return max(32, super().reach(cell))  # the network needs context around the mask

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        if not mask.any() or min(mask.shape) * self.max_side < THINNEST * max(mask.shape):
            return mask.copy()
        # RGB, as the network was trained; the BGR of the package's own example (cv2.imread) is a mistake.
        refined = self._network.refine(
            np.ascontiguousarray(image), mask.astype(np.uint8) * 255, fast=self.fast, L=self.max_side
        )
        return np.asarray(refined).reshape(mask.shape) > 127

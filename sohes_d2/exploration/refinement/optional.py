"""Refiners that need optional packages.

`crf` needs ``pydensecrf2``, which is compiled at install time (a C++ compiler is needed): ``pip install
'sohes_d2[crf]'``. `cascadepsp` needs ``segmentation-refinement``, ``pip install 'sohes_d2[cascadepsp]'``, and a weights
file.
"""

from __future__ import annotations

import logging
import pickle
from pathlib import Path

import cv2
import numpy as np

from .base import REFINERS, Refiner

WEIGHTS_URL = "https://github.com/hkchengrex/CascadePSP/releases/download/v1.0/model"
DEFAULT_FOLDER = "~/.segmentation-refinement"  # CascadePSP's package's own folder
FILE_NAME = "model"  # the package takes a folder, and expects the file in it under this name

THINNEST = 8  # shortest side of a crop at its working size, in pixels, that CascadePSP's network accepts

logger = logging.getLogger(__name__)


@REFINERS.register()
class crf(Refiner):  # noqa: N801 (the class is named as the config names it)
    """Dense CRF (Kraehenbuehl and Koltun, NeurIPS 2011): aligns masks with the photo's colours. Training-free.

    Mean-field inference over two labels, mask and rest, with a smoothness and an appearance kernel.
    HASSOD runs the CRF once over all regions of an image of 480 x 480 pixels; here it runs on one mask's crop, with the
    same kernels. Roughly 0.3 s for a crop of 480 x 480 pixels on one CPU core.

    Args:
        iterations: mean-field steps [H].
        smooth_weight, smooth_xy: weight, and standard deviation in pixels, of the smoothness kernel [H].
        appearance_weight, appearance_xy, appearance_rgb: weight and standard deviations (pixels, grey values of 0-255)
            of the appearance kernel [H].
        confidence: probability, in (0.5, 1), of a label far inside the mask or far outside of it [D]. HASSOD uses 1 -
            1e-5 with soft mask edges; hard edges, as here, would not move with such a value.
        softness: standard deviation, in pixels, of the blur of the mask's edge beforehand [D]; 0 for a hard edge.
        max_side: a larger crop is reduced to this longest side, and the result enlarged again [H: 480].

    Raises:
        ImportError: pydensecrf is not installed; the message names the command.
        ValueError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        iterations: int = 10,
        smooth_weight: float = 7.0,
        smooth_xy: float = 3.0,
        appearance_weight: float = 10.0,
        appearance_xy: float = 50.0,
        appearance_rgb: float = 5.0,
        confidence: float = 0.8,
        softness: float = 4.0,
        max_side: int = 480,
    ):
        try:
            import pydensecrf.densecrf  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "refiner 'crf' needs the package pydensecrf, which is not installed: pip install 'sohes_d2[crf]' "
                "(it builds pydensecrf2 and needs a C++ compiler), or choose the refiner 'guided', which needs nothing"
            ) from error
        if not 0.5 < confidence < 1:
            raise ValueError(f"confidence must be in (0.5, 1), got {confidence}")
        if iterations < 1 or max_side < 1 or softness < 0:
            raise ValueError(
                "iterations and max_side must be positive and softness not negative, "
                f"got {iterations}, {max_side}, {softness}"
            )
        self.iterations = iterations
        self.smooth = {"sxy": smooth_xy, "compat": smooth_weight}
        self.appearance = {"sxy": appearance_xy, "srgb": appearance_rgb, "compat": appearance_weight}
        self.confidence = confidence
        self.softness = softness
        self.max_side = max_side

    def reach(self, cell: float) -> int:
        return max(24, super().reach(cell))  # the appearance kernel compares colours inside and outside of the mask

    def refine(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        if mask.all() or not mask.any():
            return mask.copy()
        scale = min(1.0, self.max_side / max(height, width))
        if scale < 1.0:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            small = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
            probability = cv2.resize(self._infer(image, small), (width, height), interpolation=cv2.INTER_LINEAR)
        else:
            probability = self._infer(image, mask.astype(np.float32))
        return probability >= 0.5

    def _infer(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """(H, W) float32 probability of being inside, from an (H, W) float32 mask in [0, 1]."""
        from pydensecrf.densecrf import DenseCRF2D  # here, so that a refiner can be sent to worker processes

        height, width = mask.shape
        if self.softness:
            mask = cv2.GaussianBlur(mask, (0, 0), self.softness)
        inside = ((1 - self.confidence) + (2 * self.confidence - 1) * mask).astype(np.float32).reshape(-1)
        model = DenseCRF2D(width, height, 2)
        model.setUnaryEnergy(np.ascontiguousarray(-np.log(np.stack([1 - inside, inside]))))
        model.addPairwiseGaussian(**self.smooth)
        model.addPairwiseBilateral(rgbim=np.ascontiguousarray(image), **self.appearance)
        return np.array(model.inference(self.iterations), np.float32)[1].reshape(height, width)


@REFINERS.register()
class cascadepsp(Refiner):  # noqa: N801 (the class is named as the config names it)
    """CascadePSP (Cheng et al., CVPR 2020), as SOHES used it, through its authors' package. NOT free of human labels.

    Its network was trained on masks drawn by people. Labels refined with it are no longer purely self-supervised; the
    output file records the refiner, and choosing it logs a warning. It serves to reproduce the paper only.

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
            raise ImportError(
                "refiner 'cascadepsp' needs the package segmentation-refinement, which is not installed: "
                "pip install 'sohes_d2[cascadepsp]', or choose the training-free refiner 'guided'"
            ) from error
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

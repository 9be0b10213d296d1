"""Interface of feature extractors: one vector per cell of a grid over the image; and what frozen networks share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Callable, TypeVar

import numpy as np
import torch
from fvcore.common.registry import Registry
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import WeightsError
from ...weights import load_weights

DEFAULT_TOKEN_BUDGET = 3600  # of networks: the patches of a 480 x 480 image at 8 pixels
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

FEATURE_EXTRACTORS = Registry("FEATURE_EXTRACTORS")
FEATURE_EXTRACTORS.__doc__ = """
Registry of feature extractors, looked up by ``cfg.EXPLORATION.FEATURES.NAME`` before timm's and torchvision's names.

The registered object is called with ``cfg`` and returns a :class:`FeatureExtractor`: a function, or a class whose
constructor takes ``cfg`` (Detectron2's ``@configurable`` makes one).
"""


class FeatureExtractor(ABC):
    """Extracts grids of feature vectors from images for the clustering of phase 1 (SOHES, section 3.1, step 1).

    Cell (r, c) of a (rows, cols) grid covers the pixels [r*H/rows, (r+1)*H/rows) x [c*W/cols, (c+1)*W/cols).

    Attributes:
        name: the name that selects this extractor in ``EXPLORATION.FEATURES.NAME``.
        cell: pixels of the resized input per cell side (the patch size of a ViT).
        token_budget: maximum number of cells per image, see :meth:`grid_size`.
        device: where :meth:`extract` computes.
    """

    name: str
    cell: int
    token_budget: int
    device: torch.device = torch.device("cpu")

    @property
    def on_host(self) -> bool:
        """Whether it runs on the CPU, in which case each worker process should have its own copy."""
        return self.device.type == "cpu"

    def grid_size(self, image_size: tuple[int, int]) -> tuple[int, int]:
        """Grid (rows, cols) for an image of ``image_size`` (H, W) pixels.

        The aspect ratio is kept, ``rows * cols <= token_budget``, both are >= 1, and no cell is smaller than a pixel.
        """
        height, width = image_size
        if height < 1 or width < 1:
            raise ValueError(f"Image size {tuple(image_size)} has no pixels.")
        # rows = sqrt(budget * H / W), in integers, since rounding could exceed the budget.
        rows = min(max(math.isqrt(self.token_budget * height // width), 1), height, self.token_budget)
        cols = min(max(math.isqrt(self.token_budget * width // height), 1), width, self.token_budget // rows)
        return rows, cols

    def extract(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Features of ``images``, a list of (H, W, 3) uint8 RGB arrays of one size: (B, rows, cols, C) float32."""
        height, width = check_images(images)
        return self.extract_at(images, self.grid_size((height, width)))

    @abstractmethod
    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        """:meth:`extract` on a given ``grid`` (rows, cols), as needed for zoomed crops."""

    @abstractmethod
    def describe(self) -> dict:
        """JSON-ready metadata that identifies these features, stored in the ``info`` of every file made with them."""


def check_images(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """The common size (H, W) of a batch of RGB images.

    Raises:
        ValueError: an empty batch, another type or shape than (H, W, 3) uint8, or mixed sizes.
    """
    if len(images) == 0:
        raise ValueError("An empty batch has no features: pass at least one image.")
    for image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            raise ValueError(f"An image must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}.")
        if image.shape != images[0].shape:
            raise ValueError(
                f"Images of one batch must have one size: {images[0].shape} and {image.shape} do not match."
            )
    return images[0].shape[0], images[0].shape[1]


class NetworkExtractor(FeatureExtractor):
    """Features of one layer of a frozen network.

    Args:
        name: the network.
        token_budget: maximum number of cells per image.
        dtype: "float32", "bfloat16" or "float16" (GPU only) for the network; the features are float32.
        device: where the network runs.

    Raises:
        ValueError: an unknown type, or float16 on a CPU.
    """

    def __init__(self, name: str, token_budget: int, dtype: str, device: str | torch.device):
        self.name, self.token_budget = name, token_budget
        self.device = torch.device(device)
        if dtype not in DTYPES:
            raise ValueError(f"EXPLORATION.FEATURES.DTYPE {dtype!r} is not one of {', '.join(DTYPES)}.")
        if dtype == "float16" and self.device.type == "cpu":
            raise ValueError("EXPLORATION.FEATURES.DTYPE float16 needs a GPU; on a CPU use float32 or bfloat16.")
        self.dtype = DTYPES[dtype]

    def _load(self, model: nn.Module, weights: str, is_needed: Callable[[str], bool]) -> None:
        """Set `model`, frozen, and `report` from ``weights``, or the library's weights of the name if empty.

        Raises:
            WeightsError: the weights are unavailable, or lack tensors that ``is_needed`` selects by their name.
        """
        self.report = load_weights(model, weights or f"hub:{self.name}")
        missing = [key for key in self.report.missing if is_needed(key)]
        if missing:
            raise WeightsError(
                f"Weights {self.report.origin} lack {len(missing)} tensors of {self.name!r} "
                f"({', '.join(missing[:4])}). "
                "Choose the architecture that they were made with (EXPLORATION.FEATURES.NAME)."
            )
        self.model: Any = freeze(model, self.device)

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


def network_settings(cfg) -> dict[str, Any]:
    """Arguments of a network extractor for any network, from ``cfg.EXPLORATION.FEATURES``."""
    node = cfg.EXPLORATION.FEATURES
    settings = {"dtype": node.DTYPE, "device": cfg.MODEL.DEVICE}
    return {**settings, "token_budget": node.TOKEN_BUDGET} if node.TOKEN_BUDGET else settings


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Raised by the hook of :func:`run_until` to leave the forward pass with the captured tensor."""

    def __init__(self, value: Tensor):
        self.value = value


def run_until(model: nn.Module, module: nn.Module, x: Tensor, *, at_input: bool = False) -> Tensor:
    """Run ``model(x)`` until its submodule ``module``: that module's output, or its first input with ``at_input``.

    Later modules are not computed. A hook is registered for the call and always removed.
    """

    def on_input(_: nn.Module, args: tuple) -> None:
        raise _Reached(args[0])

    def on_output(_: nn.Module, args: tuple, output: Tensor) -> None:
        raise _Reached(output)

    handle = module.register_forward_pre_hook(on_input) if at_input else module.register_forward_hook(on_output)
    try:
        model(x)
    except _Reached as reached:
        return reached.value
    finally:
        handle.remove()
    raise RuntimeError(f"{type(model).__name__} never called its {type(module).__name__}: its features cannot be read.")


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze(model: ModuleT, device: torch.device) -> ModuleT:
    """``model`` on ``device`` in evaluation mode, with all parameters frozen."""
    return model.to(device).eval().requires_grad_(False)


def to_input(
    images: Sequence[np.ndarray],
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Images (H, W, 3) uint8 RGB of one size -> normalised input (B, 3, size[0], size[1]) float32 on ``device``.

    The antialiased bicubic resize runs on uint8 on the CPU for all devices, so that they get the same pixels.
    """
    resized = []
    for image in images:
        pixels = torch.tensor(image).permute(2, 0, 1)[None]
        if tuple(pixels.shape[-2:]) != tuple(size):
            pixels = F.interpolate(pixels, size=tuple(size), mode="bicubic", antialias=True)
        resized.append(pixels)
    batch = torch.cat(resized).contiguous().to(device).float()
    center, scale = (torch.tensor(v, device=device).mul(255).view(1, 3, 1, 1) for v in (mean, std))
    return (batch - center) / scale

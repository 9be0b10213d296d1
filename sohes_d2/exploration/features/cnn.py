"""Features of a frozen convolutional network from timm or torchvision: one of its feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from ...weights import TORCHVISION_PREFIX
from .base import DEFAULT_TOKEN_BUDGET, NetworkExtractor, check_images, network_settings, run_until, to_input

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PROBE = 256  # side of the probe image of find_stage, divisible by all usual strides
_SMALLEST_INPUT = 64  # kernels without padding need a minimum size, even for a grid of one cell


class CNNExtractor(NetworkExtractor):
    """One feature vector per cell of a feature map at a given stride.

    The images are resized (antialiased bicubic) so that the map has rows x cols cells; where the network's padding
    changes its size slightly, or the grid is tiny, the map itself is resampled.

    Args:
        name: a timm model ("convnext_tiny.fb_in22k") or "torchvision/resnet50".
        weights: as for :func:`sohes_d2.weights.load_weights`; empty for the library's own weights of ``name``.
        stride: input pixels per cell of the map; the last stage with this stride is used.
        token_budget: maximum number of cells per image.
        dtype: "float32", "bfloat16" or "float16" (GPU only) for the network; the features are float32.
        device: where the network runs.

    Raises:
        WeightsError: the weights are unavailable, or do not cover the network up to that stage.
        ValueError: an unknown network, or one without such a map.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str = "",
        stride: int = 8,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ):
        super().__init__(name, token_budget, dtype, device)
        self.cell = stride
        model, self.mean, self.std = _build(name)
        model.eval()
        self.stage, self.dims, used = find_stage(model, stride, name)
        self._load(model, weights, lambda key: key.rpartition(".")[0] in used)

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.EXPLORATION.FEATURES
        return {"name": node.NAME, "weights": node.WEIGHTS, "stride": node.STRIDE, **network_settings(cfg)}

    @torch.inference_mode()
    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        check_images(images)
        rows, cols = grid
        size = max(rows * self.cell, _SMALLEST_INPUT), max(cols * self.cell, _SMALLEST_INPUT)
        x = to_input(images, size, self.mean, self.std, self.device)
        with self._precision():
            maps = run_until(self.model, self.model.get_submodule(self.stage), x)
        maps = maps.float()
        if tuple(maps.shape[-2:]) != (rows, cols):
            maps = F.interpolate(maps, size=(rows, cols), mode="bilinear", antialias=True)
        return maps.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def describe(self) -> dict:
        return {
            "name": self.name,
            "weights": self.report.origin,
            "weights_sha256": self.report.digest,
            "stage": self.stage,
            "patch": self.cell,
            "dims": self.dims,
            "token_budget": self.token_budget,
            "dtype": str(self.dtype).replace("torch.", ""),
        }


def _build(name: str) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Randomly initialized network, and the mean and standard deviation of its input in [0, 1]."""
    if name.startswith(TORCHVISION_PREFIX):
        try:
            model: Any = torchvision.models.get_model(name[len(TORCHVISION_PREFIX) :], weights=None)
        except ValueError as error:
            raise ValueError(
                f"torchvision has no model {name!r} (torchvision.models.list_models() lists them)."
            ) from error
        return model, _IMAGENET_MEAN, _IMAGENET_STD
    model = timm.create_model(name, num_classes=0)
    return model, model.pretrained_cfg["mean"], model.pretrained_cfg["std"]


@torch.inference_mode()
def find_stage(model: nn.Module, stride: int, name: str) -> tuple[str, int, set[str]]:
    """The stage of ``model`` whose map has ``stride``: (module name, channels, names of the modules run up to it).

    The libraries name stages differently, so the stage is found with a probe image: of the modules whose output is a
    (B, C, H, W) map of that stride, those nearest to the root are whole stages, and the last of these is the deepest.
    """
    seen: list[tuple[str, tuple[int, ...]]] = []

    def note(module_name: str):
        def hook(_: nn.Module, args: tuple, output: object) -> None:
            seen.append((module_name, tuple(output.shape) if isinstance(output, Tensor) else ()))

        return hook

    handles = [module.register_forward_hook(note(key)) for key, module in model.named_modules() if key]
    try:
        model(torch.zeros(1, 3, _PROBE, _PROBE))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{name!r} does not take images of any size ({error}): choose a convolutional network or a plain ViT."
        ) from error
    finally:
        for handle in handles:
            handle.remove()

    maps = [(key, shape) for key, shape in seen if len(shape) == 4 and shape[2] == shape[3] > 1]
    fitting = [(key, shape) for key, shape in maps if abs(shape[2] * stride - _PROBE) <= stride]
    if not fitting:
        strides = sorted({round(_PROBE / shape[2]) for _, shape in maps})
        raise ValueError(f"{name!r} has no map of stride {stride} (EXPLORATION.FEATURES.STRIDE); it has {strides}.")
    top = min(key.count(".") for key, _ in fitting)
    stage, shape = [item for item in fitting if item[0].count(".") == top][-1]
    order = [key for key, _ in seen]
    return stage, shape[1], set(order[: order.index(stage) + 1])

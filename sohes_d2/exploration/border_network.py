"""Border network: a small U-Net that predicts from the photo how many pseudo-label borders pass through each pixel.

It is trained on label files of phase 1 (`sohes_d2.correction.border_student`), so its prediction averages
over many noisy forests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import WeightsError
from ..weights import load_weights, local_path, read_weights
from .features.base import freeze

# Mean and standard deviation of RGB pixels in [0, 1]; trained networks depend on these values.
_MEAN, _STD = 0.45, 0.25
_FIRST_CONVOLUTION = re.compile(r"(?:^|\.)encoder\.(\d+)\.0\.weight$")


class BorderNetwork(nn.Module):
    """U-Net (Ronneberger et al., MICCAI 2015) on 2 x 2 blocks of pixels (Shi et al., CVPR 2016).

    The blocks halve the cost of the finest stage; the output still has one value per pixel.

    Args:
        channels: of each stage. The first has half the photo's resolution, each later one half of the one before.
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 96, 128)):
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"MODEL.BORDER_NETWORK.CHANNELS needs at least one positive number, got {list(channels)}")
        self.channels = tuple(int(c) for c in channels)
        inputs = (12, *self.channels[:-1])
        self.encoder = nn.ModuleList(
            nn.Sequential(*_convolution(before, after), *_convolution(after, after))
            for before, after in zip(inputs, self.channels)
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*_convolution(fine + coarse, fine)) for fine, coarse in zip(self.channels, self.channels[1:])
        )
        self.head = nn.Conv2d(self.channels[0], 4, 3, padding=1)
        nn.init.constant_(self.head.get_parameter("bias"), -2.0)  # few pixels are borders

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, H, W) of the border strength of RGB ``images`` (B, 3, H, W), values from 0 to 255."""
        height, width = images.shape[-2:]
        x = (images.float() / 255 - _MEAN) / _STD
        x = F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2), mode="replicate"), 2)
        stages = []
        for k, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2, ceil_mode=True) if k else x)
            stages.append(x)
        for fine, stage in zip(reversed(stages[:-1]), reversed(self.decoder)):
            x = F.interpolate(x, size=fine.shape[-2:], mode="bilinear", align_corners=False)
            x = stage(torch.cat([fine, x], 1))
        return F.pixel_shuffle(self.head(x), 2)[:, 0, :height, :width]


def _convolution(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class LearnedBorders:
    """Border strength of photos, predicted by a trained `BorderNetwork`.

    Args:
        weights: a file written by ``sohes train-borders``, or a checkpoint of a `BorderStudent` training.
        device: where the network runs.

    Raises:
        WeightsError: the file does not exist, or does not hold a border network.
    """

    def __init__(self, weights: str, device: str = "cpu"):
        network = BorderNetwork(_channels(weights))
        self.report = load_weights(network, weights)
        if self.report.missing:
            raise WeightsError(
                f"Weights {weights!r} lack {len(self.report.missing)} tensors of a border network; give a file of a "
                "training with MODEL.META_ARCHITECTURE BorderStudent (EXPLORATION.BORDER.WEIGHTS)."
            )
        self.device = torch.device(device)
        self.network = freeze(network, self.device)

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Border strength (H, W) uint8, 255 is the strongest, of each (H, W, 3) uint8 RGB image."""
        strengths = []
        for image in images:  # one by one: the finest stage of a large photo takes 100 MB
            x = torch.tensor(image, device=self.device).permute(2, 0, 1)[None]
            strengths.append(torch.sigmoid(self.network(x))[0].mul(255).round().byte().cpu().numpy())
        return strengths

    def describe(self) -> dict[str, Any]:
        """JSON-ready metadata that identifies the network."""
        return {"weights": self.report.origin, "weights_sha256": self.report.digest}


def _channels(weights: str) -> list[int]:
    """Channels per stage, inferred from the shapes of the stored tensors."""
    found: Any = read_weights(local_path(weights))
    while isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    sizes: dict[int, int] = {}
    for name, value in found.items() if isinstance(found, Mapping) else ():
        match = _FIRST_CONVOLUTION.search(str(name))
        if match and isinstance(value, Tensor) and value.ndim == 4:
            sizes[int(match.group(1))] = value.shape[0]
    if not sizes or sorted(sizes) != list(range(len(sizes))):
        raise WeightsError(
            f"Weights {weights!r} do not hold a border network: give a file of sohes train-borders, or of a "
            "training with MODEL.META_ARCHITECTURE BorderStudent (EXPLORATION.BORDER.WEIGHTS)."
        )
    return [sizes[k] for k in range(len(sizes))]

"""Construction of the ViT that is pretrained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer


def build_trunk(name: str, options: Mapping[str, Any], drop_path: float = 0.0) -> VisionTransformer:
    """A ViT of timm for inputs of any size, with initial values.

    Args:
        name: a VisionTransformer of timm; its tag gives the normalisation.
        options: more arguments of ``timm.create_model``, for example ``{"patch_size": 8, "depth": 4}``.
        drop_path: of the last block.

    Raises:
        ValueError: no such ViT, or options that do not fit it; the message names the config key.
    """
    try:
        trunk = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"MODEL.VIT.NAME {name!r} with MODEL.VIT.OPTIONS {dict(options)} cannot be built ({error}); "
            "timm.list_models('vit_*') lists what there is."
        ) from error
    if not isinstance(trunk, VisionTransformer) or not hasattr(trunk, "pos_embed"):
        raise ValueError(f"MODEL.VIT.NAME {name!r} is a {type(trunk).__name__} of timm, not a plain VisionTransformer.")
    return trunk


def normalization(trunk: VisionTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation (1, 3, 1, 1) of the trunk's input, for pixels in 0..255."""
    cfg: Any = trunk.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).mul(255).view(1, 3, 1, 1) for key in ("mean", "std"))
    return mean, std

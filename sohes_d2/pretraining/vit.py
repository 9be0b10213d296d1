"""Construction of the ViT to pretrain, and its export as safetensors with timm's key names."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import timm
import torch
from safetensors.torch import save
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ..exploration.features.vit import METADATA_KEY
from ..structures.files import atomic_writer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def build_vit(name: str, options: Mapping[str, Any], drop_path: float = 0.0) -> VisionTransformer:
    """Build a randomly initialised timm ViT for inputs of any size.

    Args:
        name: a VisionTransformer of timm; its tag selects the normalisation.
        options: more arguments of ``timm.create_model``, for example ``{"patch_size": 8, "depth": 4}``.
        drop_path: drop path rate of the last block.

    Raises:
        ValueError: unknown ViT or invalid options; the message names the config key.
    """
    try:
        vit = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"MODEL.VIT.NAME {name!r} with MODEL.VIT.OPTIONS {dict(options)} cannot be built ({error}); "
            "timm.list_models('vit_*') lists the available ones."
        ) from error
    if not isinstance(vit, VisionTransformer) or not hasattr(vit, "pos_embed"):
        raise ValueError(f"MODEL.VIT.NAME {name!r} is a {type(vit).__name__} of timm, not a plain VisionTransformer.")
    return vit


def normalization(vit: VisionTransformer) -> tuple[torch.Tensor, torch.Tensor]:
    """Input mean and standard deviation, (1, 3, 1, 1) each, for pixels in 0..255."""
    cfg: Any = vit.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).mul(255).view(1, 3, 1, 1) for key in ("mean", "std"))
    return mean, std


def export_vit(vit: nn.Module, path: str, architecture: Mapping[str, Any], dtype: str = "float16") -> None:
    """Write a ViT's weights as safetensors, atomically.

    Args:
        vit: a timm ViT.
        path: path of the safetensors file; its folder is created.
        architecture: "name" and "options" of ``timm.create_model``, stored as json in the file's header.
        dtype: float32, float16 (half the size) or bfloat16.

    Raises:
        ValueError: an unknown dtype, or weights beyond the range of float16.
    """
    if dtype not in DTYPES:
        raise ValueError(f"PRETRAINING.OUTPUT_DTYPE {dtype!r} is not one of {', '.join(DTYPES)}.")
    state = {key: value.detach().cpu().to(DTYPES[dtype]).contiguous() for key, value in vit.state_dict().items()}
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{', '.join(bad[:4])} is not finite in {dtype}; set PRETRAINING.OUTPUT_DTYPE float32.")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_writer(path) as file:
        # A single entry: several have no fixed order, and equal weights must give identical files.
        file.write(save(state, metadata={METADATA_KEY: json.dumps(architecture, sort_keys=True)}))

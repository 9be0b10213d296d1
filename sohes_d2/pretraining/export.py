"""Export of the pretrained backbone: safetensors in timm's names, with the architecture in the metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..exploration.features.vit_file import METADATA_KEY
from ..structures.files import atomic_writer

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def export_trunk(trunk: nn.Module, path: str, architecture: Mapping[str, Any], dtype: str = "float16") -> None:
    """Write a ViT's weights, whole or not at all.

    Args:
        trunk: of timm.
        path: of the safetensors file; its folder is made.
        architecture: json-ready, goes into the file's header: "name" and "options" of ``timm.create_model``.
        dtype: float32, float16 (half the size) or bfloat16.

    Raises:
        ValueError: an unknown dtype, or weights beyond the range of float16.
    """
    if dtype not in DTYPES:
        raise ValueError(f"PRETRAINING.OUTPUT_DTYPE {dtype!r} is not one of {', '.join(DTYPES)}.")
    state = {key: value.detach().cpu().to(DTYPES[dtype]).contiguous() for key, value in trunk.state_dict().items()}
    bad = [key for key, value in state.items() if not torch.isfinite(value).all()]
    if bad:
        raise ValueError(f"{', '.join(bad[:4])} is not finite in {dtype}; set PRETRAINING.OUTPUT_DTYPE float32.")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with atomic_writer(path) as file:
        # A single entry, since several come in any order, and then equal weights would be unequal files.
        file.write(save(state, metadata={METADATA_KEY: json.dumps(architecture, sort_keys=True)}))

"""Features of a frozen vision transformer (ViT): keys, queries, values or tokens of one block.

The ViT is named by its timm model name, or read from a file of ``sohes pretrain``, which stores its architecture.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import WeightsError
from ...weights import BACKBONE, local_path, safetensors_metadata
from ...weights.layouts import resampling_of, use_official_resampling
from .base import (
    DEFAULT_TOKEN_BUDGET,
    FEATURE_EXTRACTORS,
    NetworkExtractor,
    check_images,
    network_settings,
    run_until,
    to_input,
)

METADATA_KEY = "sohes_d2"  # in the header of the safetensors file: json with "name" and "options"
FACETS = ("query", "key", "value", "token")  # the first three in the order of a fused qkv projection


class ViTExtractor(NetworkExtractor):
    """One vector per patch of a frozen ViT; by default the keys of the last block's attention.

    Keys, queries and values are the projections of all heads side by side, after the block's q/k norm where it has
    one and before any rotary embedding, which would encode a patch's position instead of its content. Tokens are a
    block's output after the model's final norm, as in the official DINO and DINOv2 code. Class and register tokens
    take part in the attention and are then dropped. Images are resized (antialiased bicubic) to exactly rows x cols
    patches, and the position embedding is resampled to the same grid.

    Args:
        name: a plain ViT of timm ("vit_base_patch8_224.dino", "vit_small_patch14_dinov2.lvd142m", ...). Its tag also
            gives the normalisation, so choose the tag that matches the weights, even if these are read from a file.
        weights: see :func:`sohes_d2.weights.load_weights`; empty for timm's own weights of ``name``.
        options: more arguments of ``timm.create_model``, for example ``{"depth": 4}``.
        block: index of the block; negative indices count from the end.
        facet: "key", "query", "value" or "token".
        token_budget: maximum number of patches per image.
        positions: resampling of the position embedding, one of `sohes_d2.weights.layouts.RESAMPLINGS`.
        dtype: "float32", "bfloat16" or "float16" (GPU only) for the network; the features are float32.
        device: where the network runs.

    Raises:
        WeightsError: the weights are unavailable, or do not cover this architecture.
        ValueError: an architecture that cannot give such features, or an option out of range.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: str = "",
        options: Mapping[str, Any] | None = None,
        block: int = -1,
        facet: str = "key",
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        positions: str = "auto",
        dtype: str = "float32",
        device: str | torch.device = "cpu",
    ):
        if facet not in FACETS:
            raise ValueError(f"EXPLORATION.FEATURES.FACET {facet!r} is not one of {', '.join(FACETS)}.")
        super().__init__(name, token_budget, dtype, device)
        self.facet = facet
        try:
            # timm's transformers share these attributes, but no base class
            model: Any = timm.create_model(name, num_classes=0, dynamic_img_size=True, **(options or {}))
        except TypeError as error:
            raise ValueError(
                f"{name!r} takes only inputs of one size: choose a plain ViT (timm.list_models('vit_*'))."
            ) from error
        self.positions = resampling_of(name, positions)
        if self.positions == "official":
            use_official_resampling(model)
        count = len(model.blocks)
        if not -count <= block < count:
            raise ValueError(f"EXPLORATION.FEATURES.BLOCK {block} is out of range: {name!r} has {count} blocks.")
        self.block = block % count
        self.dims = model.embed_dim if facet == "token" else _facet_dims(model.blocks[self.block], facet, name)
        # A pooling head is never run; any other missing weight would silently mix random numbers into the features.
        self._load(model, weights, lambda key: not key.startswith(("head", "fc_norm", "attn_pool")))
        self.cell = int(model.patch_embed.feat_ratio())
        self.mean, self.std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.EXPLORATION.FEATURES
        return {
            "name": node.NAME,
            "weights": node.WEIGHTS,
            "facet": node.FACET,
            "positions": node.POSITIONS,
            **vit_settings(cfg),
        }

    @torch.inference_mode()
    def extract_at(self, images: Sequence[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
        check_images(images)
        rows, cols = grid
        x = to_input(images, (rows * self.cell, cols * self.cell), self.mean, self.std, self.device)
        block = self.model.blocks[self.block]
        with self._precision():
            if self.facet == "token":
                tokens = self.model.norm(run_until(self.model, block, x))
            else:
                tokens = project(block.attn, run_until(self.model, block.attn, x, at_input=True), self.facet)
        patches = tokens[:, self.model.num_prefix_tokens :].float()
        return patches.reshape(len(images), rows, cols, -1).cpu().numpy()

    def describe(self) -> dict:
        return {
            "name": self.name,
            "weights": self.report.origin,
            "weights_sha256": self.report.digest,
            "block": self.block,
            "facet": self.facet,
            "patch": self.cell,
            "dims": self.dims,
            "token_budget": self.token_budget,
            "positions": self.positions,
            "dtype": str(self.dtype).replace("torch.", ""),
        }


def project(attention: nn.Module, x: Tensor, facet: str) -> Tensor:
    """Keys, queries or values (B, N, heads * head_dim) that ``attention`` computes from its input ``x`` (B, N, C).

    Computed here rather than captured by a hook on the projection, since timm's variants call it in different ways
    (fused or not, bias inside or beside it).
    """
    letter = facet[0]
    fused = getattr(attention, "qkv", None)
    if fused is not None:
        dims = fused.out_features // 3
        part = slice(FACETS.index(facet) * dims, (FACETS.index(facet) + 1) * dims)
        # EVA and BEiT keep the biases beside the fused projection.
        bias = getattr(attention, f"{letter}_bias", None) if fused.bias is None else fused.bias[part]
        y = F.linear(x, fused.weight[part], bias)
    else:
        y = getattr(attention, f"{letter}_proj")(x)
    norm = getattr(attention, f"{letter}_norm", None)
    if norm is None or isinstance(norm, nn.Identity):
        return y
    return norm(y.unflatten(-1, (-1, attention.head_dim))).flatten(-2)


def _facet_dims(block: nn.Module, facet: str, name: str) -> int:
    """Output channels of :func:`project` for this block."""
    attention = getattr(block, "attn", None)
    fused, single = getattr(attention, "qkv", None), getattr(attention, f"{facet[0]}_proj", None)
    if isinstance(fused, nn.Linear):
        return fused.out_features // 3
    if isinstance(single, nn.Linear):
        return single.out_features
    raise ValueError(
        f"The blocks of {name!r} ({type(block).__name__}) have no single attention with a qkv projection: use "
        "EXPLORATION.FEATURES.FACET token, or another ViT."
    )


def read_architecture(path: str) -> dict[str, Any]:
    """Read the metadata that ``sohes pretrain`` wrote into the header of a weights file.

    Args:
        path: the file, or ``shipped:NAME``.

    Returns:
        "name" and "options" of ``timm.create_model``, and "facet", the selected features.

    Raises:
        WeightsError: the file cannot be read, or does not have this metadata.
    """
    path = os.path.expanduser(local_path(path))
    text = safetensors_metadata(path).get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            f"Weights {path!r}: the header does not name the architecture, unlike in files of sohes pretrain. Set "
            "EXPLORATION.FEATURES.NAME to a ViT of timm."
        )
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"Weights {path!r}: the header's entry {METADATA_KEY!r} is not valid json ({error})."
        ) from error
    types = {"name": str, "options": dict, "facet": str}
    wrong = not isinstance(found, dict) or "name" not in found
    if wrong or any(key in found and not isinstance(found[key], kind) for key, kind in types.items()):
        raise WeightsError(f"Weights {path!r}: the header's entry {METADATA_KEY!r} does not name an architecture.")
    return found


def load_vit_file(path: str, **settings: Any) -> ViTExtractor:
    """The `ViTExtractor` of a file written by ``sohes pretrain``.

    Args:
        path: the safetensors file, or ``shipped:NAME``; empty for the one included in the package.
        settings: further arguments of `ViTExtractor`; "facet" defaults to that of the file.

    Raises:
        WeightsError: see `read_architecture`; or the weights do not cover the architecture.
    """
    path = path or BACKBONE
    architecture = read_architecture(path)
    # pretraining resamples positions as timm does, whatever the name implies
    settings = {"facet": architecture.get("facet", "token"), "positions": "timm", **settings}
    return ViTExtractor(architecture["name"], options=architecture.get("options"), weights=path, **settings)


@FEATURE_EXTRACTORS.register()
def vit_file(cfg) -> ViTExtractor:
    """Extractor described by ``EXPLORATION.FEATURES.WEIGHTS``, a file of sohes pretrain; empty: the shipped one."""
    return load_vit_file(cfg.EXPLORATION.FEATURES.WEIGHTS, **vit_settings(cfg))


def vit_settings(cfg) -> dict[str, Any]:
    """Arguments of `ViTExtractor` that are read from the config for every ViT."""
    return {"block": cfg.EXPLORATION.FEATURES.BLOCK, **network_settings(cfg)}

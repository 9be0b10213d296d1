"""Feature extractor from a ViT file of this project, which stores its architecture. The package includes one."""

from __future__ import annotations

import json
import os
from typing import Any

from ...errors import WeightsError
from ...weights import BACKBONE, local_path, safetensors_metadata
from .base import FEATURE_EXTRACTORS, FeatureExtractor

METADATA_KEY = "sohes_d2"  # in the header of the safetensors file: json with "name" and "options"


def read_architecture(path: str) -> dict[str, Any]:
    """Read the metadata that ``sohes pretrain`` wrote into the header of a weights file.

    Args:
        path: the file, or ``shipped:NAME``.

    Returns:
        "name" and "options" of ``timm.create_model``, and "facet", the selected features.

    Raises:
        WeightsError: not such a file.
    """
    path = os.path.expanduser(local_path(path))
    text = safetensors_metadata(path).get(METADATA_KEY)
    if text is None:
        raise WeightsError(
            f"Weights {path!r}: the header does not say which architecture it holds, as files of "
            "sohes pretrain do. Name it: EXPLORATION.FEATURES.NAME with a ViT of timm."
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


def load_vit_file(path: str, **settings: Any) -> FeatureExtractor:
    """The `ViTExtractor` of a file written by ``sohes pretrain``.

    Args:
        path: the safetensors file, or ``shipped:NAME``; empty for the one included in the package.
        settings: further arguments of `ViTExtractor`; "facet" defaults to that of the file.

    Raises:
        WeightsError: not such a file.
    """
    from .vit import ViTExtractor

    path = path or BACKBONE
    found = read_architecture(path)
    # pretraining resamples positions as timm does, whatever the name implies
    settings = {"facet": found.get("facet", "token"), "positions": "timm", **settings}
    return ViTExtractor(found["name"], options=found.get("options"), weights=path, **settings)


@FEATURE_EXTRACTORS.register()
def vit_file(cfg) -> FeatureExtractor:
    """Extractor described by ``EXPLORATION.FEATURES.WEIGHTS``, a file of sohes pretrain; empty: the shipped one."""
    return load_vit_file(cfg.EXPLORATION.FEATURES.WEIGHTS, **vit_settings(cfg))


def vit_settings(cfg) -> dict[str, Any]:
    """Arguments of `ViTExtractor` that are read from the config for every file."""
    node = cfg.EXPLORATION.FEATURES
    settings = {"block": node.BLOCK, "dtype": node.DTYPE, "device": cfg.MODEL.DEVICE}
    return {**settings, "token_budget": node.TOKEN_BUDGET} if node.TOKEN_BUDGET else settings

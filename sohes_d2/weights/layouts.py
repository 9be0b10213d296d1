"""Checkpoint layouts: mapping of the names and shapes of a file to those of a model."""

from __future__ import annotations

import math
import re
import types
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from ..errors import WeightsError

# Entries of a training checkpoint that hold a state dict, best first: official DINO evaluates the teacher, not the
# student.
_WRAPPERS = ("teacher", "model_ema", "student", "model", "state_dict", "model_state_dict", "module", "encoder")
_MAX_WRAPPERS = 8  # nesting depth
_CHUNKED_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
# Names of earlier versions of this package -> current names.
_RENAMED = ((re.compile(r"(^|\.)vit\.trunk\."), r"\1vit.model."), (re.compile(r"^trunk\."), "vit."))
_ARCHITECTURE = "the architecture that the file was made with (EXPLORATION.FEATURES.NAME; to train, MODEL.VIT.NAME)"


def current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert names of earlier versions of this package to the current ones; other names are unchanged."""
    renamed = {}
    for key, value in state.items():
        for pattern, new in _RENAMED:
            key = pattern.sub(new, str(key))
        renamed[key] = value
    return renamed


# Resampling of a position embedding to another grid.
#   official: bicubic, not antialiased, scale (n + 0.1) / M from M to n cells, as in DINO and DINOv2 without registers
#   timm:     antialiased bicubic, scale n / M
RESAMPLINGS = ("auto", "official", "timm")


def resampling_of(name: str, wanted: str = "auto") -> str:
    """Resampling method, "official" or "timm", for a timm model name such as "vit_base_patch8_224.dino".

    Args:
        name: a timm model name.
        wanted: one of RESAMPLINGS; "auto" is the method used by the authors of the named weights.

    Raises:
        ValueError: not one of RESAMPLINGS.
    """
    if wanted not in RESAMPLINGS:
        raise ValueError(f"POSITIONS {wanted!r} is not one of {', '.join(RESAMPLINGS)}")
    if wanted != "auto":
        return wanted
    architecture, _, tag = name.partition(".")
    official = tag.startswith("dino") or ("dinov2" in architecture and "_reg" not in architecture)
    return "official" if official else "timm"


def resample_positions(positions: Tensor, old: tuple[int, int], new: tuple[int, int], way: str) -> Tensor:
    """Resample position embeddings of patches (1, rows * columns, C) to another grid (1, new rows * new columns, C).

    Args:
        positions: position embeddings without class and register tokens.
        old, new: (rows, columns).
        way: "official" or "timm".
    """
    if tuple(old) == tuple(new):
        return positions
    image = positions.float().reshape(1, *old, -1).permute(0, 3, 1, 2)
    if way == "official":
        scale = [(n + 0.1) / m for n, m in zip(new, old)]
        image = functional.interpolate(image, scale_factor=scale, mode="bicubic", antialias=False)
        assert image.shape[2:] == tuple(new)
    else:
        image = functional.interpolate(image, size=tuple(new), mode="bicubic", antialias=True)
    return image.permute(0, 2, 3, 1).reshape(1, new[0] * new[1], -1).to(positions.dtype)


def use_official_resampling(vit: Any) -> None:
    """Make a timm ViT (built with ``dynamic_img_size``) resample its positions to each image by the "official" method.

    Raises:
        ValueError: a model with another kind of position embedding.
    """
    if type(vit)._pos_embed is not VisionTransformer._pos_embed:
        raise ValueError(f"timm's {type(vit).__name__} has its own position embedding; set POSITIONS to timm")
    vit._pos_embed = types.MethodType(_embed_positions, vit)


def _embed_positions(vit: Any, x: Tensor) -> Tensor:
    """Add positions: patches (B, rows, columns, C) -> tokens (B, prefix + rows * columns, C), as in timm."""
    rows, columns = x.shape[1:3]
    x = x.flatten(1, 2)
    prefix = [token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.reg_token) if token is not None]
    if vit.pos_embed is None:
        return vit.pos_drop(torch.cat([*prefix, x], dim=1))
    own = 0 if vit.no_embed_class else vit.num_prefix_tokens
    head, patches = vit.pos_embed[:, :own], vit.pos_embed[:, own:]
    patches = resample_positions(patches, vit.patch_embed.grid_size, (rows, columns), "official")
    if own:
        return vit.pos_drop(torch.cat([*prefix, x], dim=1) + torch.cat([head, patches], dim=1))
    return vit.pos_drop(torch.cat([*prefix, x + patches], dim=1))


def match(checkpoint: object, model: nn.Module, source: str) -> tuple[dict[str, Tensor], list[str], str]:
    """Map ``checkpoint`` to the names and shapes of ``model``: (state, unexpected names, description of the layout)."""
    notes: list[str] = []
    found = _unwrap(checkpoint, source, notes)
    wanted = model.state_dict()
    found = _rename_official_dinov2(found, wanted, notes)
    prefix = _choose_prefix(found, wanted)
    if prefix:
        notes.append(f"prefix {prefix!r}")
    inside = {key[len(prefix) :]: value for key, value in found.items() if key.startswith(prefix)}
    unexpected = [key for key in found if not key.startswith(prefix)]
    _fit_position_embedding(inside, wanted, model, source, notes)

    state: dict[str, Tensor] = {}
    for key, value in inside.items():
        if key not in wanted:
            unexpected.append(key)
        elif value.shape == wanted[key].shape:
            if value.is_floating_point() != wanted[key].is_floating_point() or value.is_complex():
                raise WeightsError(
                    f"Weights {source!r}: {key} is {value.dtype} in the file and {wanted[key].dtype} in the model. "
                    "Save the values themselves, neither quantized nor rounded to integers."
                )
            state[key] = value.to(wanted[key].dtype)
        elif key.split(".")[0] in ("head", "head_dist", "fc", "classifier"):
            unexpected.append(key)
        else:
            raise WeightsError(
                f"Weights {source!r}: {key} is {tuple(value.shape)} in the file and {tuple(wanted[key].shape)} in "
                f"the model. Choose {_ARCHITECTURE}, e.g. the same width and patch size."
            )
    layout = ", ".join(notes) or "timm"
    if 2 * len(state) < len(wanted):
        raise WeightsError(
            f"Weights {source!r}: only {len(state)} of the model's {len(wanted)} tensors are in this file (layout: "
            f"{layout}; names like {', '.join(list(found)[:3])}; the model has names like "
            f"{', '.join(list(wanted)[:3])}). Choose {_ARCHITECTURE}, or rename its "
            "tensors to timm's names."
        )
    return state, unexpected, layout


def _unwrap(checkpoint: object, source: str, notes: list[str]) -> dict[str, Tensor]:
    """Descend into the dict of a training checkpoint until names map to tensors."""
    while isinstance(checkpoint, Mapping) and len(notes) < _MAX_WRAPPERS:
        nested = [key for key, value in checkpoint.items() if isinstance(value, Mapping)]
        known = [key for key in _WRAPPERS if key in nested]
        tensors = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
        if tensors and not known:
            return tensors
        if not known and len(nested) != 1:
            break
        step = known[0] if known else nested[0]
        notes.append(f"entry {step!r}")
        checkpoint = checkpoint[step]
    seen = f"entries {list(checkpoint)[:8]}" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
    raise WeightsError(
        f"Weights {source!r}: no state dict (found: {seen}). Save a dict of names to tensors, at the top level "
        f"or under one of {', '.join(_WRAPPERS)}."
    )


def _rename_official_dinov2(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Convert official DINOv2 names to timm's; each rule is applied only if the model needs it."""
    rules = []
    if not any(_CHUNKED_BLOCK.search(key) for key in wanted):  # EfficientNet also has names blocks.0.0.
        rules.append((_CHUNKED_BLOCK, r"\1blocks.\2.", "chunked blocks"))
    if "reg_token" in wanted:
        rules.append((re.compile(r"(^|\.)register_tokens$"), r"\1reg_token", "register_tokens"))
    if "blocks.0.mlp.fc1.weight" in wanted:
        rules.append((re.compile(r"\.mlp\.w12\."), ".mlp.fc1.", "SwiGLU w12"))
        rules.append((re.compile(r"\.mlp\.w3\."), ".mlp.fc2.", "SwiGLU w3"))
    for pattern, new, note in rules:
        renamed = {pattern.sub(new, key): value for key, value in found.items()}
        if renamed.keys() != found.keys():
            notes.append(f"DINOv2 {note}")
            found = renamed
    return found


def _choose_prefix(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """The prefix that matches most names of the model; ties: a teacher first, a student last, then the shortest."""
    anchors = list(wanted)[:8]
    prefixes = {""}
    for key in found:
        prefixes.update(key[: -len(a)] for a in anchors if key == a or key.endswith("." + a))

    def rank(prefix: str) -> tuple[int, bool, bool, int, str]:
        matches = sum(prefix + key in found for key in wanted)
        return matches, "teacher" in prefix, "student" not in prefix, -len(prefix), prefix

    return max(prefixes, key=rank)


def _fit_position_embedding(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], model: nn.Module, source: str, notes: list[str]
) -> None:
    """Resample ``pos_embed`` (1, prefix + N, C) in ``found`` to the model's grid and prefix tokens, in place.

    A file may have a position for the class token where the model has none (DINOv2 with registers: timm adds it to the
    class token, with the same result), or lack it where the model has one (then it is zero).
    """
    target, value = wanted.get("pos_embed"), found.get("pos_embed")
    if target is None or value is None or value.ndim != 3 or target.ndim != 3 or value.shape[2] != target.shape[2]:
        return
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    grid = tuple(getattr(model.patch_embed, "grid_size", None) or [math.isqrt(target.shape[1] - prefix)] * 2)
    count = value.shape[1]
    # numbers of prefix positions that leave a square grid
    prefix_counts = [p for p in (prefix, 1, 0) if 0 <= p < count and math.isqrt(count - p) ** 2 == count - p]
    if not prefix_counts:
        if value.shape == target.shape:
            return
        raise WeightsError(
            f"Weights {source!r}: pos_embed has {count} positions, which is not a square grid, and the model has "
            f"{target.shape[1]}. Choose {_ARCHITECTURE}."
        )
    own = prefix_counts[0]
    head, patches = value[:, :own], value[:, own:]
    if own == 1 and prefix == 0 and "cls_token" in wanted and "cls_token" in found:
        found["cls_token"] = found["cls_token"] + head
        notes.append("class position added to cls_token")
    head = torch.cat([head[:, :prefix], head.new_zeros(1, max(prefix - own, 0), value.shape[2])], dim=1)

    side = math.isqrt(count - own)
    if (side, side) != grid:
        way = "official" if "_pos_embed" in vars(model) else "timm"
        patches = resample_positions(patches, (side, side), grid, way)
        notes.append(f"pos_embed {side}x{side} resampled to {grid[0]}x{grid[1]}")
    found["pos_embed"] = torch.cat([head, patches], dim=1)


def summary(names: tuple[str, ...]) -> str:
    """Format names for a log line, grouped by their first part: ``head.* (4), mask_token``."""
    groups = Counter(f"{name.split('.')[0]}.*" if "." in name else name for name in names)
    words = [f"{group} ({count})" if group.endswith(".*") else group for group, count in groups.items()]
    return ", ".join(words) or "none"

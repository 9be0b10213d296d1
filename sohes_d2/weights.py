"""Weights for frozen and trained backbones: where they come from, which layout they have, what was loaded.

One entrance, :func:`load_weights`, serves the feature extractors of phase 1 and the backbones of phases 2 and 3. No
file is ever unpickled with code execution, and nothing is downloaded unless the caller named a hub model or a URL.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import math
import os
import pickle
import queue
import re
import threading
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

TORCHVISION_PREFIX = "torchvision/"
# Entries of a training checkpoint that hold a state dict, best first: official DINO evaluates the teacher, not the
# student.
_WRAPPERS = ("teacher", "model_ema", "student", "model", "state_dict", "model_state_dict", "module", "encoder")
_CHUNKED_BLOCK = re.compile(r"(^|\.)blocks\.\d+\.(\d+)\.")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PASS_A_FILE = "pass a local file: --weights FILE (EXPLORATION.FEATURES.WEIGHTS); to train, MODEL.VIT.WEIGHTS FILE"
_ARCHITECTURE = "the architecture that the file was made with (EXPLORATION.FEATURES.NAME; to train, MODEL.VIT.NAME)"


class WeightsError(RuntimeError):
    """Weights could not be found, read or matched. The message names the source and what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did.

    Attributes:
        origin: ``hub:NAME``, ``shipped:NAME``, ``url:URL``, ``file:BASENAME`` or ``random:SEED``; the same on every
            machine.
        layout: the naming found in the source, in words ("timm" when nothing had to be translated).
        loaded: number of tensors of the model that were set.
        missing: names of the model's tensors that the source lacks; they keep their initial values.
        unexpected: names in the source that the model has no place for (heads, mask tokens, optimizer-side copies).
        digest: sha256 of the loaded tensors, see :func:`state_digest`.
    """

    origin: str
    layout: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    digest: str


def load_weights(model: nn.Module, source: str) -> LoadReport:
    """Load weights into ``model`` in place and say in one log line what matched.

    Understood layouts: the model's own names; any common prefix in front of them (``module.``, ``backbone.``,
    ``teacher.backbone.``, ...; a teacher is preferred to a student); training checkpoints that wrap them
    (``teacher``, ``model``, ``state_dict``, ...); the official DINOv2 names (chunked blocks, register tokens,
    SwiGLU). An absolute position embedding is resampled to the model's grid.

    Args:
        model: a ViT or a CNN with timm's or torchvision's parameter names.
        source: ``hub:NAME`` (a timm name with a pretrained tag, or ``torchvision/NAME``), ``shipped:NAME`` (see
            :mod:`sohes_d2.model_zoo`), an ``http(s)://`` URL of a file, ``random`` or ``random:SEED``, or else the path
            of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file.

    Raises:
        WeightsError: the source cannot be reached, read without running code, or matched to the model.
    """
    from .model_zoo import PREFIX, local_path

    if source == "random" or source.startswith("random:"):
        return _load_random(model, source)
    if source.startswith("hub:"):
        origin, checkpoint = source, _read_hub(source[len("hub:") :])
    elif source.startswith(PREFIX):
        origin, checkpoint = source, read_checkpoint(local_path(source))
    elif source.startswith(("http://", "https://")):
        origin, checkpoint = f"url:{source}", read_checkpoint(_download(source))
    else:
        origin, checkpoint = f"file:{os.path.basename(source)}", read_checkpoint(source)

    state, unexpected, layout = _match(checkpoint, model, source)
    missing = model.load_state_dict(state, strict=False).missing_keys
    # Old checkpoints lack this counter, which nothing but a cumulative batch norm reads.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    report = LoadReport(origin, layout, len(state), tuple(missing), tuple(unexpected), state_digest(state))
    logger.info(
        "Weights %s (layout: %s, sha256 %s): %d tensors loaded; missing: %s; ignored: %s",
        report.origin,
        report.layout,
        report.digest[:12],
        report.loaded,
        _summary(report.missing),
        _summary(report.unexpected),
    )
    return report


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of the tensors, sorted by name: the same for any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def read_checkpoint(path: str) -> object:
    """Read a weights file on the CPU without running any code from it.

    Args:
        path: a safetensors file or a torch checkpoint; told apart by content, so the file's suffix does not matter.

    Returns:
        What the file holds: a mapping of names to tensors, possibly nested in the dict of a training checkpoint.

    Raises:
        WeightsError: not found, not a weights file, damaged, or in need of code execution.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        kind = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise WeightsError(
            f"Weights {path!r}: this path {kind}. Give a .pth, .pt or .safetensors file, a URL, or 'hub:NAME' for the "
            "weights of a timm model."
        )
    with open(path, "rb") as file:
        head = file.read(16)
    if head[8:9] == b"{":
        return _read_safetensors(path)
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _read_torch(path)
    raise WeightsError(
        f"Weights {path!r}: not a torch or safetensors file ({os.path.getsize(path)} bytes, begins with {head!r}). A "
        "saved web page, a Git LFS pointer or a broken download looks like this: delete it and download the file "
        "itself."
    )


def _read_safetensors(path: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"Weights {path!r}: damaged safetensors file ({error}). Download it again.") from error


def _read_torch(path: str) -> object:
    try:
        # Training checkpoints of DINO and timm keep their command line in a Namespace, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        wanted = f" (it asks for {found.group(1)})" if found else ""
        raise WeightsError(
            f"Weights {path!r}: loading this file would run code stored in it{wanted}, so it is refused. If you "
            "trust its author, convert it once elsewhere: torch.load(path, weights_only=False), keep the tensors, "
            "and save them with safetensors.torch.save_file; then pass the .safetensors file."
        ) from error
    except (RuntimeError, OSError, EOFError) as error:
        raise WeightsError(
            f"Weights {path!r}: truncated, damaged, or not written by torch.save ({error}). Download it again."
        ) from error


def _download(url: str) -> str:
    """Local path of ``url``, downloaded once into iopath's cache (FVCORE_CACHE, as for Detectron2's own models)."""
    from iopath.common.file_io import HTTPURLHandler, PathManager

    manager = PathManager()
    manager.register_handler(HTTPURLHandler())
    try:
        return manager.get_local_path(url)
    except OSError as error:
        raise WeightsError(f"Weights {url!r}: the download failed ({error}). Connect, or {_PASS_A_FILE}.") from error


def _pretrained_cfg(name: str):
    """timm's record of pretrained weights for ``name`` ("arch" or "arch.tag"), or None when there are none."""
    import timm

    return timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None


def _read_hub(name: str) -> Mapping[str, Tensor]:
    if name.startswith(TORCHVISION_PREFIX):
        return _read_torchvision(name)
    import timm

    cfg = _pretrained_cfg(name)
    if cfg is None:
        raise WeightsError(
            f"Weights 'hub:{name}': timm {timm.__version__} knows no pretrained weights of this name "
            f"(timm.list_pretrained() lists those it has); {_PASS_A_FILE}."
        )
    cached = hub_cached_file(name)
    where = " or ".join(filter(None, [cfg.hf_hub_id and f"https://huggingface.co/{cfg.hf_hub_id}", str(cfg.url or "")]))
    remedy = f"Connect, or download them from {where} and {_PASS_A_FILE}."
    if cached is None and cfg.hf_hub_id and not hub_reachable(name, timeout=10.0):
        # Asked first, because the hub's client would spend a minute on retries before it says the same.
        raise WeightsError(f"Weights 'hub:{name}' are not in the local cache and the hub cannot be reached. {remedy}")
    try:
        # timm translates its hub files per architecture, so a donor model is the one reader that is right for all of
        # them. A cached file is handed over by path: then a run without a network does not wait for one.
        donor = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": cached} if cached else None
        )
    except Exception as error:  # the hub, its HTTP library and timm raise a dozen unrelated types here
        reason = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
        raise WeightsError(
            f"Weights 'hub:{name}' could not be loaded from {cached or where} ({reason}). {remedy}"
        ) from error
    return donor.state_dict()


def _read_torchvision(name: str) -> Mapping[str, Tensor]:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name[len(TORCHVISION_PREFIX) :]).DEFAULT
    except ValueError as error:
        raise WeightsError(f"Weights 'hub:{name}': torchvision has no such model; {_PASS_A_FILE}.") from error
    return read_checkpoint(_download(weights.url))


def hub_cached_file(name: str) -> str | None:
    """Path of the hub weights of timm model ``name`` in the local cache, or None. Never touches the network."""
    from huggingface_hub import try_to_load_from_cache

    cfg = _pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    repo, _, revision = cfg.hf_hub_id.partition("@")
    for filename in (cfg.hf_hub_filename,) if cfg.hf_hub_filename else _HUB_FILES:
        path = try_to_load_from_cache(repo, filename, revision=revision or None)
        if isinstance(path, str):
            return path
    return None


def hub_reachable(name: str, timeout: float = 3.0) -> bool:
    """Whether the hub answers for timm model ``name`` within ``timeout`` seconds; False when HF_HUB_OFFLINE is set."""
    import huggingface_hub

    cfg = _pretrained_cfg(name)
    if cfg is None or not cfg.hf_hub_id or huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    repo, _, revision = cfg.hf_hub_id.partition("@")
    url = huggingface_hub.hf_hub_url(repo, "config.json", revision=revision or None)
    request = urllib.request.Request(url, method="HEAD", headers=huggingface_hub.utils.build_hf_headers())
    answer: queue.Queue[bool] = queue.Queue()

    def ask() -> None:
        try:
            with urllib.request.urlopen(request, timeout=timeout):
                answer.put(True)
        except (OSError, HTTPException, ValueError):
            answer.put(False)

    # In a thread, because the timeout of a socket does not cover a name server that never answers.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=timeout)
    except queue.Empty:
        return False


def _load_random(model: nn.Module, source: str) -> LoadReport:
    try:
        seed = int(source.partition(":")[2] or 0)
    except ValueError as error:
        raise WeightsError(f"Weights {source!r}: the seed is not a number. Write 'random' or 'random:3'.") from error
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                # Tokens and position embeddings are (1, N, C); kernels get the scale that keeps a signal's variance.
                scale = 0.02 if parameter.ndim == 3 else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                parameter.zero_()
    state = model.state_dict()
    logger.info("Weights random:%d: seeded random values, of use for tests only", seed)
    return LoadReport(f"random:{seed}", "random", len(state), (), (), state_digest(state))


def _match(checkpoint: object, model: nn.Module, source: str) -> tuple[dict[str, Tensor], list[str], str]:
    """Translate ``checkpoint`` to the names and shapes of ``model``: (state, unexpected names, layout in words)."""
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
            f"Weights {source!r}: only {len(state)} of the model's {len(wanted)} tensors are in this file (layout "
            f"seen: {layout}; names like {', '.join(list(found)[:3])}; the model wants names like "
            f"{', '.join(list(wanted)[:3])}). Choose {_ARCHITECTURE}, or rename its "
            "tensors to timm's names."
        )
    return state, unexpected, layout


def _unwrap(checkpoint: object, source: str, notes: list[str]) -> dict[str, Tensor]:
    """Go down into the dict of a training checkpoint until names map to tensors."""
    while isinstance(checkpoint, Mapping):
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
        f"Weights {source!r}: no state dict found (seen: {seen}). Save a dict of names to tensors, at the top or "
        f"under one of {', '.join(_WRAPPERS)}."
    )


def _rename_official_dinov2(
    found: dict[str, Tensor], wanted: Mapping[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """The official DINOv2 names in timm's terms, each rule only where the model has a use for it."""
    rules = []
    if not any(_CHUNKED_BLOCK.search(key) for key in wanted):  # an EfficientNet has blocks.0.0. of its own
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
    """The prefix with most of the model's names behind it; among equals a teacher, no student, then the shortest."""
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

    A file may carry one position for the class token where the model has none (DINOv2 with registers: timm adds it to
    the class token itself, which is the same sum), or lack it where the model has one (then it is zero).
    """
    target, value = wanted.get("pos_embed"), found.get("pos_embed")
    if target is None or value is None or value.ndim != 3 or target.ndim != 3 or value.shape[2] != target.shape[2]:
        return
    prefix = 0 if getattr(model, "no_embed_class", False) else getattr(model, "num_prefix_tokens", 1)
    grid = tuple(getattr(model.patch_embed, "grid_size", None) or [math.isqrt(target.shape[1] - prefix)] * 2)
    count = value.shape[1]
    squares = [p for p in (prefix, 1, 0) if 0 <= p < count and math.isqrt(count - p) ** 2 == count - p]
    if not squares:
        if value.shape == target.shape:
            return
        raise WeightsError(
            f"Weights {source!r}: pos_embed has {count} positions, which is no square grid, and the model wants "
            f"{target.shape[1]}. Choose {_ARCHITECTURE}."
        )
    own = squares[0]
    head, patches = value[:, :own], value[:, own:]
    if own == 1 and prefix == 0 and "cls_token" in wanted and "cls_token" in found:
        found["cls_token"] = found["cls_token"] + head
        notes.append("class position added to cls_token")
    head = torch.cat([head[:, :prefix], head.new_zeros(1, max(prefix - own, 0), value.shape[2])], dim=1)

    side = math.isqrt(count - own)
    if (side, side) != grid:
        from timm.layers import resample_abs_pos_embed

        patches = resample_abs_pos_embed(patches, new_size=list(grid), old_size=[side, side], num_prefix_tokens=0)
        notes.append(f"pos_embed {side}x{side} resampled to {grid[0]}x{grid[1]}")
    found["pos_embed"] = torch.cat([head, patches], dim=1)


def _summary(names: tuple[str, ...]) -> str:
    """Names for a log line, grouped by their first part: ``head.* (4), mask_token``."""
    groups = Counter(f"{name.split('.')[0]}.*" if "." in name else name for name in names)
    words = [f"{group} ({count})" if group.endswith(".*") else group for group, count in groups.items()]
    return ", ".join(words) or "none"

"""Sources of weights (hub, URL, file, shipped with the package) and :func:`load_weights`, which loads them.

Nothing is downloaded unless the caller names a hub model or a URL.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import WeightsError
from .files import read_weights
from .layouts import match, summary

logger = logging.getLogger(__name__)

TORCHVISION_PREFIX = "torchvision/"
PREFIX = "shipped:"
BACKBONE = f"{PREFIX}vit_mini8"  # features for phase 1 and initial weights for phase 2

_SHIPPED = Path(__file__).parents[1] / "model_zoo"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_PASS_A_FILE = "pass a local file: --weights FILE (EXPLORATION.FEATURES.WEIGHTS); to train, MODEL.VIT.WEIGHTS FILE"


@dataclass(frozen=True)
class LoadReport:
    """Result of :func:`load_weights`.

    Attributes:
        origin: ``hub:NAME``, ``shipped:NAME``, ``url:URL``, ``file:BASENAME`` or ``random:SEED``; the same on every
            machine.
        layout: description of the naming in the source ("timm" if no name was changed).
        loaded: number of tensors of the model that were set.
        missing: tensors of the model that the source lacks; they keep their initial values.
        unexpected: names in the source that are not in the model (heads, mask tokens, other copies of the model).
        digest: sha256 of the loaded tensors, see :func:`state_digest`.
    """

    origin: str
    layout: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    digest: str


def load_weights(model: nn.Module, source: str) -> LoadReport:
    """Load weights into ``model`` in place, and log the result in one line.

    Supported layouts: the model's own names; any common prefix before them (``module.``, ``backbone.``,
    ``teacher.backbone.``, ...; a teacher is preferred to a student); training checkpoints that wrap them
    (``teacher``, ``model``, ``state_dict``, ...); the official DINOv2 names (chunked blocks, register tokens,
    SwiGLU). An absolute position embedding is resampled to the model's grid.

    Args:
        model: a ViT or a CNN with timm's or torchvision's parameter names.
        source: ``hub:NAME`` (a timm name with a pretrained tag, or ``torchvision/NAME``), ``shipped:NAME`` (see
            `shipped_files`), an ``http(s)://`` URL of a file, ``random`` or ``random:SEED``, or else the path
            of a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors`` file.

    Raises:
        WeightsError: the source cannot be reached, read without running code, or matched to the model.
    """
    if source == "random" or source.startswith("random:"):
        return _load_random(model, source)
    if source.startswith("hub:"):
        origin, checkpoint = source, _read_hub(source[len("hub:") :])
    elif source.startswith(PREFIX):
        origin, checkpoint = source, read_weights(local_path(source))
    elif source.startswith(("http://", "https://")):
        origin, checkpoint = f"url:{source}", read_weights(_download(source))
    else:
        origin, checkpoint = f"file:{os.path.basename(source)}", read_weights(source)

    state, unexpected, layout = match(checkpoint, model, source)
    missing = model.load_state_dict(state, strict=False).missing_keys
    # Old checkpoints lack this counter, which only batch norm with a cumulative average uses.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    report = LoadReport(origin, layout, len(state), tuple(missing), tuple(unexpected), state_digest(state))
    logger.info(
        "Weights %s (layout: %s, sha256 %s): %d tensors loaded; missing: %s; ignored: %s",
        report.origin,
        report.layout,
        report.digest[:12],
        report.loaded,
        summary(report.missing),
        summary(report.unexpected),
    )
    return report


def state_digest(state: Mapping[str, Tensor]) -> str:
    """sha256 (hex) over names, types, shapes and bytes of the tensors, sorted by name: the same for any file format."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def shipped_files() -> dict[str, Path]:
    """Files of the weights ``shipped:NAME``, by name."""
    backbones = {path.stem: path for path in _SHIPPED.glob("*.safetensors")}
    models = {path.parent.name: path for path in _SHIPPED.glob("*/model.safetensors")}
    return backbones | models


def local_path(source: str) -> str:
    """The file of ``shipped:NAME``; any other source is returned unchanged.

    Raises:
        WeightsError: no such weights are shipped with the package.
    """
    if not source.startswith(PREFIX):
        return source
    files = shipped_files()
    try:
        return str(files[source[len(PREFIX) :]])
    except KeyError:
        raise WeightsError(
            f"Weights {source!r} are not shipped with this package; it has {', '.join(sorted(files))}."
        ) from None


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
    """timm's record of pretrained weights for ``name`` ("arch" or "arch.tag"), or None if there are none."""
    import timm

    return timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None


def _read_hub(name: str) -> Mapping[str, Tensor]:
    if name.startswith(TORCHVISION_PREFIX):
        return _read_torchvision(name)
    import timm

    cfg = _pretrained_cfg(name)
    if cfg is None:
        raise WeightsError(
            f"Weights 'hub:{name}': timm {timm.__version__} has no pretrained weights of this name "
            f"(see timm.list_pretrained()); {_PASS_A_FILE}."
        )
    cached = hub_cached_file(name)
    where = " or ".join(filter(None, [cfg.hf_hub_id and f"https://huggingface.co/{cfg.hf_hub_id}", str(cfg.url or "")]))
    remedy = f"Connect, or download them from {where} and {_PASS_A_FILE}."
    if cached is None and cfg.hf_hub_id and not hub_reachable(name, timeout=10.0):
        # Checked first, because the hub's client would retry for a minute before failing.
        raise WeightsError(f"Weights 'hub:{name}' are not in the local cache and the hub cannot be reached. {remedy}")
    try:
        # timm converts its hub files per architecture, so loading them into a donor model works for all of them. A
        # cached file is passed by path, so that a run without network does not wait for a connection.
        donor = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay={"file": cached} if cached else None
        )
    except Exception as error:  # the hub, its HTTP library and timm raise many unrelated types
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
    return read_weights(_download(weights.url))


def hub_cached_file(name: str) -> str | None:
    """Path of the hub weights of timm model ``name`` in the local cache, or None. Does not access the network."""
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
    """Whether the hub responds for timm model ``name`` within ``timeout`` seconds; False if HF_HUB_OFFLINE is set."""
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

    # In a thread, because the socket timeout does not cover a name server that never responds.
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
                # Tokens and position embeddings are (1, N, C); kernels are scaled to keep the variance.
                scale = 0.02 if parameter.ndim == 3 else parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif name.endswith("bias"):
                parameter.zero_()
    state = model.state_dict()
    logger.info("Weights random:%d: seeded random values, for tests only", seed)
    return LoadReport(f"random:{seed}", "random", len(state), (), (), state_digest(state))

"""A plain vision transformer of timm for dense prediction: any input size, run in stages; base of the backbones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from detectron2.config import CfgNode
from detectron2.modeling import Backbone

from ...errors import WeightsError
from ...weights import LoadReport, load_weights
from ...weights.layouts import resampling_of, use_official_resampling

TOKEN_STRIDES = (8, 16, 32)
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}  # of a backbone's maps
# Options that are set here: weights are loaded separately, drop path has its own key, and the ViT has no head.
_OWN_OPTIONS = ("pretrained", "checkpoint_path", "num_classes", "dynamic_img_size", "drop_path_rate", "patch_drop_rate")
_VIT_MODULES = ["vision_transformer", "deit"]  # of timm: where its plain ViTs are defined
_BLOCK_NAME = re.compile(r"vit\.model\.blocks\.(\d+)\.")


class ViT(nn.Module):
    """timm's ViT without its head and final norm, whose patch tokens lie on a grid of a chosen stride.

    Class and register tokens stay in the sequence, before the patch tokens. Attention is timm's, which is PyTorch's
    scaled_dot_product_attention. Weights are random until :meth:`load_pretrained`.

    Attributes:
        model: timm's model, with timm's parameter names.
        dim: channels C of a token.
        depth: number of blocks.
        num_prefix_tokens: class and register tokens in front of the patch tokens.
        patch_size: pixels of the ViT's input per token.
        token_stride: pixels of this module's input per token.
    """

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        token_stride: int = 0,
        positions: str = "auto",
        drop_path: float = 0.0,
        gradient_checkpointing: bool = False,
        freeze: bool = False,
    ) -> None:
        """
        Args:
            name: a VisionTransformer of timm, e.g. "vit_base_patch8_224.dino" or "vit_small_patch14_dinov2".
            options: more arguments of ``timm.create_model``, e.g. ``{"depth": 4, "embed_dim": 192, "num_heads": 3}``.
            token_stride: 8, 16 or 32; 0 for the patch size if it is one of these, else 16. The image is resized by
                patch size / token stride for the ViT, so an 8-px ViT at stride 16 gets it at half size.
            positions: resampling of positions to an image's grid, one of `sohes_d2.weights.layouts.RESAMPLINGS`.
            drop_path: probability that the last block is skipped in training, rising linearly from 0 in the first.
            gradient_checkpointing: recompute blocks in the backward pass.
            freeze: no gradient for the ViT's parameters, and no drop path.

        Raises:
            ValueError: not a plain ViT of timm, or an option that does not fit it. The message names the config key.
        """
        super().__init__()
        self.name = name
        self.model = _create_vit(name, options or {}, drop_path)
        try:
            if resampling_of(name, positions) == "official":
                use_official_resampling(self.model)
        except ValueError as error:
            raise ValueError(f"MODEL.VIT.POSITIONS: {error}") from error
        self.dim: int = self.model.embed_dim
        self.depth = len(self.model.blocks)
        self.num_prefix_tokens: int = self.model.num_prefix_tokens
        self.patch_size = int(self.model.patch_embed.feat_ratio())
        self.token_stride = _token_stride(token_stride, self.patch_size)
        self.gradient_checkpointing = gradient_checkpointing
        self.frozen = freeze
        if freeze:
            self.model.requires_grad_(False)
        self.train(self.training)

    @classmethod
    def from_config(cls, node: CfgNode) -> ViT:
        """The ViT of a config's MODEL.VIT, with random weights."""
        return cls(
            node.NAME,
            options=dict(node.OPTIONS),
            token_stride=node.TOKEN_STRIDE,
            positions=node.POSITIONS,
            drop_path=node.DROP_PATH,
            gradient_checkpointing=node.GRADIENT_CHECKPOINTING,
            freeze=node.FREEZE,
        )

    def train(self, mode: bool = True) -> ViT:
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def load_pretrained(self, source: str = "") -> LoadReport:
        """Load the ViT's weights (:func:`sohes_d2.weights.load_weights`); "" for the hub's weights of its name.

        The position embedding is resampled to the ViT's default grid here, and to each image's grid when it is used.

        Raises:
            WeightsError: the weights are unavailable, or do not cover this architecture.
        """
        report = load_weights(self.model, source or f"hub:{self.name}")
        if report.missing:
            raise WeightsError(
                f"Weights {report.origin} lack {len(report.missing)} tensors of {self.name!r} "
                f"({', '.join(report.missing[:4])}). Set MODEL.VIT.NAME to the architecture that they were made with."
            )
        return report

    def grid_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patch tokens for an image of this size."""
        return height // self.token_stride, width // self.token_stride

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W), sides divisible by the token stride -> tokens (B, prefix + rows * cols, C).

        If the patch size is not the token stride, the images are resized (antialiased bicubic, as in phase 1).
        """
        size = [cells * self.patch_size for cells in self.grid_size(*images.shape[-2:])]
        if list(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bicubic", antialias=True)
        model = self.model
        # timm's own method, or the official one: it handles the position embedding of each variant, and resamples it.
        return model.norm_pre(model._pos_embed(model.patch_embed(images)))

    def run_blocks(self, tokens: Tensor, start: int, stop: int) -> Tensor:
        """Tokens (B, N, C) before block ``start`` -> tokens after block ``stop - 1``."""
        for block in self.model.blocks[start:stop]:
            tokens = checkpointed(block, tokens, recompute=self.gradient_checkpointing and self.training)
        return tokens

    def to_map(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokens (B, prefix + rows * cols, C) -> map (B, C, rows, cols) of the patch tokens."""
        return tokens[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid).contiguous()


class ViTBackbone(Backbone):
    """Base of backbones that turn a ViT's tokens into maps of strides 4, 8, 16 and 32 with the ViT's channels.

    Attributes:
        vit: the ViT, the only part with pretrained weights.
    """

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.vit = vit
        self._out_features = list(STRIDES)
        self._out_feature_channels = dict.fromkeys(STRIDES, vit.dim)
        self._out_feature_strides = dict(STRIDES)

    @property
    def size_divisibility(self) -> int:
        return 32

    def checked_size(self, images: Tensor) -> tuple[int, int]:
        """Height and width of a batch.

        Raises:
            ValueError: a side that is not divisible by 32.
        """
        height, width = images.shape[-2:]
        if height % self.size_divisibility or width % self.size_divisibility:
            raise ValueError(
                f"{type(self).__name__} takes images with sides divisible by {self.size_divisibility} (pad them), got "
                f"{height} x {width}."
            )
        return height, width

    def load_pretrained(self, source: str = "") -> LoadReport:
        """Load the ViT's weights, see :meth:`ViT.load_pretrained`; the other weights are unchanged."""
        return self.vit.load_pretrained(source)

    @property
    def num_layers(self) -> int:
        """Number of values of :meth:`layer_of`: embeddings, each block, everything else."""
        return self.vit.depth + 2

    def layer_of(self, parameter_name: str) -> int:
        """Layer of a parameter for layer-wise learning rates.

        Args:
            parameter_name: from ``named_parameters()`` of this backbone.

        Returns:
            0 for the ViT's embeddings and special tokens, 1..depth for its blocks, depth + 1 for all other parts, which
            were not pretrained.

        Raises:
            ValueError: no parameter of this backbone can have this name.
        """
        block = _BLOCK_NAME.match(parameter_name)
        if block:
            return int(block[1]) + 1
        owner = parameter_name.split(".")[0]
        if owner == "vit":
            return 0
        if owner in self._parameters or owner in self._modules:
            return self.vit.depth + 1
        raise ValueError(
            f"{parameter_name!r} is not a parameter of {type(self).__name__}; remove a prefix like 'backbone.'."
        )


def _create_vit(name: str, options: Mapping[str, Any], drop_path: float) -> VisionTransformer:
    taken = [key for key in _OWN_OPTIONS if key in options]
    if taken:
        raise ValueError(
            f"MODEL.VIT.OPTIONS cannot set {', '.join(taken)}: weights come from MODEL.VIT.WEIGHTS, drop path from "
            "MODEL.VIT.DROP_PATH, and the rest does not fit a backbone."
        )
    if not _is_known(name):
        raise ValueError(f"MODEL.VIT.NAME {name!r} is not a model of timm {timm.__version__}. {_near_matches(name)}")
    try:
        model = timm.create_model(name, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path, **options)
    except (TypeError, ValueError, AssertionError) as error:  # an unknown or invalid argument
        with_options = f" with MODEL.VIT.OPTIONS {dict(options)}" if options else ""
        raise ValueError(
            f"MODEL.VIT.NAME {name!r}{with_options} cannot be built as a VisionTransformer of timm ({error}). "
            f"{_near_matches(name)}"
        ) from error
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"MODEL.VIT.NAME {name!r} is a {type(model).__name__} of timm, not a VisionTransformer. "
            f"{_near_matches(name)}"
        )
    # The maps use the tokens before the final norm, as in ViT-Adapter. Unused parameters would make distributed
    # training fail.
    model.norm = model.fc_norm = nn.Identity()
    model.attn_pool = None  # type: ignore[assignment]  # timm annotates it as never absent
    return model


def _is_known(name: str) -> bool:
    """Whether ``name`` is an architecture of timm, optionally with one of its pretrained tags after a dot."""
    if not timm.is_model(name):
        return False
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return False
    return True


def _near_matches(name: str) -> str:
    known = timm.list_models(module=_VIT_MODULES)
    if "." in name:
        known = known + timm.list_models(module=_VIT_MODULES, pretrained=True)
    near = difflib.get_close_matches(name, known, n=4)
    return f"Near matches: {', '.join(near)}." if near else "timm.list_models('vit_*') lists all models."


def _token_stride(token_stride: int, patch_size: int) -> int:
    if token_stride == 0:
        return patch_size if patch_size in TOKEN_STRIDES else 16
    if token_stride not in TOKEN_STRIDES:
        raise ValueError(f"MODEL.VIT.TOKEN_STRIDE {token_stride} is not 0, 8, 16 or 32.")
    return token_stride


def checkpointed(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """``module(*inputs)``; with ``recompute`` its inner activations are computed again in the backward pass.

    Outputs and gradients are the same either way: random numbers (drop path) are replayed. Not for modules whose
    forward pass has side effects, such as batch norm, whose running statistics would be updated twice.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)

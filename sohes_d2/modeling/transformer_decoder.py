"""Mask2Former's decoder (Cheng et al., CVPR 2022, section 3.2), with an ancestor head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from fvcore.common.registry import Registry
from fvcore.nn import weight_init
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import configurable

from .ancestor_head import AncestorHead
from .transformer_layers import MLP, CrossAttentionLayer, FFNLayer, PositionEmbeddingSine, SelfAttentionLayer

logger = logging.getLogger(__name__)

TRANSFORMER_DECODER_REGISTRY = Registry("TRANSFORMER_DECODER")
TRANSFORMER_DECODER_REGISTRY.__doc__ = """
Transformer decoders, called with ``(cfg, in_channels)``, the channels of the multi-scale features. The module's
forward takes ``(multi_scale_features, mask_features)``; see `MultiScaleMaskedTransformerDecoder` for both and for what
it returns.
"""

NUM_LEVELS = 3  # feature maps that layers attend to in turn


def build_transformer_decoder(cfg: Any, in_channels: int) -> nn.Module:
    """Build the decoder that ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` names."""
    return TRANSFORMER_DECODER_REGISTRY.get(cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME)(cfg, in_channels)


class FeatureLevel(NamedTuple):
    """One feature map, flattened to N = h * w cells; shared by all layers that attend to it."""

    keys: Tensor  # (B, N, C), with positional embeddings
    values: Tensor  # (B, N, C)
    mask_features: Tensor  # (B, mask_dim, N), the mask features at this map's resolution, without gradient


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(nn.Module):
    """Decoder of learned queries, which attend to image features within their own masks (masked attention).

    Layer i attends to feature map i modulo 3, coarsest first, by masked cross-attention, followed by self-attention and
    a feed-forward network. Before the first layer and after every layer, each query predicts a class, a mask and two
    ancestor embeddings.

    Parameters have the official implementation's names and shapes, so that its checkpoints load (except for tensors
    that depend on the number of classes or queries). Only `ancestor_head.*` is additional.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        num_classes: int = 1,
        hidden_dim: int,
        num_queries: int,
        nheads: int,
        dim_feedforward: int,
        dec_layers: int,
        pre_norm: bool,
        mask_dim: int,
        enforce_input_project: bool,
        deep_supervision: bool = True,
        ancestor_head: AncestorHead | None = None,
    ) -> None:
        """
        Args:
            in_channels: channels of the multi-scale features.
            num_classes: K, without "no object"; 1 is class-agnostic.
            hidden_dim: channels C of the queries.
            num_queries: Q.
            nheads: attention heads.
            dim_feedforward: hidden channels of the feed-forward networks.
            dec_layers: number of layers. With fewer than 3 not all feature maps are used.
            pre_norm: layer norm before each part of a layer instead of after it.
            mask_dim: channels of the mask features.
            enforce_input_project: project the features even if in_channels is hidden_dim.
            deep_supervision: in training, also return the predictions before the last layer.
            ancestor_head: None to predict no hierarchy.

        Raises:
            ValueError: nheads does not divide hidden_dim.
        """
        super().__init__()
        self.deep_supervision = deep_supervision
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2)
        self.level_embed = nn.Embedding(NUM_LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList()
        for _ in range(NUM_LEVELS):
            project = in_channels != hidden_dim or enforce_input_project
            self.input_proj.append(nn.Conv2d(in_channels, hidden_dim, 1) if project else nn.Identity())
            if project:
                weight_init.c2_xavier_fill(self.input_proj[-1])

        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)  # positional

        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, nheads, pre_norm) for _ in range(dec_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, dim_feedforward, pre_norm) for _ in range(dec_layers)
        )

        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP(hidden_dim, hidden_dim, hidden_dim, mask_dim)
        self.ancestor_head = ancestor_head

    @classmethod
    def from_config(cls, cfg: Any, in_channels: int) -> dict[str, Any]:
        """Read MODEL.MASK_FORMER, MODEL.SEM_SEG_HEAD and MODEL.ANCESTOR_HEAD.

        Raises:
            ValueError: MODEL.MASK_FORMER.DEC_LAYERS is less than 2.
        """
        former, head, ancestor = cfg.MODEL.MASK_FORMER, cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.ANCESTOR_HEAD
        if former.DEC_LAYERS < 2:
            raise ValueError(
                f"MODEL.MASK_FORMER.DEC_LAYERS is {former.DEC_LAYERS}, but must be at least 2: it counts predictions, "
                "and the first one is made before the first layer, so that there are DEC_LAYERS - 1 layers"
            )
        return {
            "in_channels": in_channels,
            "num_classes": head.NUM_CLASSES,
            "hidden_dim": former.HIDDEN_DIM,
            "num_queries": former.NUM_OBJECT_QUERIES,
            "nheads": former.NHEADS,
            "dim_feedforward": former.DIM_FEEDFORWARD,
            "dec_layers": former.DEC_LAYERS - 1,
            "pre_norm": former.PRE_NORM,
            "mask_dim": head.MASK_DIM,
            "enforce_input_project": former.ENFORCE_INPUT_PROJ,
            "deep_supervision": former.DEEP_SUPERVISION,
            "ancestor_head": AncestorHead(former.HIDDEN_DIM, ancestor.DIM) if ancestor.ENABLED else None,
        }

    def forward(self, multi_scale_features: Sequence[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """Predict classes, masks and ancestor embeddings of all queries.

        Args:
            multi_scale_features: 3 maps (B, in_channels, h, w), coarsest first.
            mask_features: (B, mask_dim, H/4, W/4), of an (H, W) input.

        Returns:
            "pred_logits": (B, Q, K + 1), the last class is "no object".
            "pred_masks": (B, Q, H/4, W/4), logits.
            "pred_ancestors": two tensors (B, Q, D) for `ancestor_logits`; only with an ancestor head.
            "aux_outputs": list of dicts of the above, one before each layer; empty in evaluation mode or without deep
            supervision, to save the memory of their masks.

        Raises:
            ValueError: not 3 feature maps.
        """
        if len(multi_scale_features) != NUM_LEVELS:
            raise ValueError(f"expected {NUM_LEVELS} feature maps, coarsest first, got {len(multi_scale_features)}")
        levels = [self._flatten_level(i, features, mask_features) for i, features in enumerate(multi_scale_features)]
        positions = self.query_embed.weight
        queries = self.query_feat.weight.expand(mask_features.shape[0], -1, -1)
        aux_outputs = []
        for i, (cross_attention, self_attention, ffn) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
            )
        ):
            normed, mask_embed = self._embed(queries)
            if self.training and self.deep_supervision:
                aux_outputs.append(self._predict(normed, mask_embed, mask_features))
            level = levels[i % NUM_LEVELS]
            allowed = foreground(mask_embed, level.mask_features)
            queries = cross_attention(queries, positions, level.keys, level.values, allowed)
            queries = self_attention(queries, positions)
            queries = ffn(queries)
        return {**self._predict(*self._embed(queries), mask_features), "aux_outputs": aux_outputs}

    def _flatten_level(self, index: int, features: Tensor, mask_features: Tensor) -> FeatureLevel:
        values = self.input_proj[index](features).flatten(2).transpose(1, 2) + self.level_embed.weight[index]
        positions = self.pe_layer(features).flatten(2).transpose(1, 2).to(values.dtype)
        with torch.no_grad():
            size = features.shape[-2:]
            small = F.interpolate(mask_features, size=size, mode="bilinear", align_corners=False).flatten(2)
        return FeatureLevel(values + positions, values, small)

    def _embed(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized queries (B, Q, C) for the heads, and their mask embeddings (B, Q, mask_dim)."""
        normed = self.decoder_norm(queries)
        return normed, self.mask_embed(normed)

    def _predict(self, normed: Tensor, mask_embed: Tensor, mask_features: Tensor) -> dict[str, Any]:
        predictions: dict[str, Any] = {
            "pred_logits": self.class_embed(normed),
            "pred_masks": torch.einsum("bqc,bchw->bqhw", mask_embed, mask_features),
        }
        if self.ancestor_head is not None:
            predictions["pred_ancestors"] = self.ancestor_head(normed)
        return predictions

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Older official checkpoints call query_feat static_query. If its shape differs, it keeps the old name and is
        # reported and skipped here, as Detectron2's checkpointer does for current names.
        old, new = f"{prefix}static_query.weight", f"{prefix}query_feat.weight"
        if old in state_dict and new not in state_dict:
            if state_dict[old].shape == self.query_feat.weight.shape:
                state_dict[new] = state_dict.pop(old)
            else:
                logger.warning(
                    f"{old} of shape {tuple(state_dict[old].shape)} in the checkpoint does not fit "
                    f"{tuple(self.query_feat.weight.shape)}: not loaded"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


@torch.no_grad()
def foreground(mask_embed: Tensor, mask_features: Tensor) -> Tensor:
    """Attention mask of masked attention: each query's own mask (eq. 3), or everywhere if that is empty.

    The official implementation computes full masks, resizes them, and thresholds the sigmoid at 0.5. Resizing is
    linear, so that resized features give the same masks, and full ones are needed only for the output. Empty masks,
    whose softmax would be 0 / 0, are handled as in the official implementation.

    Args:
        mask_embed: (B, Q, mask_dim).
        mask_features: (B, mask_dim, N), at the attended map's resolution.

    Returns:
        (B, 1, Q, N) bool, the same for all heads.
    """
    background = torch.einsum("bqc,bcn->bqn", mask_embed, mask_features) < 0
    nowhere = background.all(dim=-1, keepdim=True)
    return background.logical_not_().logical_or_(nowhere).unsqueeze(1)

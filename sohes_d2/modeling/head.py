"""Segmentation head: pixel decoder and transformer decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from .pixel_decoder import build_pixel_decoder
from .transformer_decoder import build_transformer_decoder


@SEM_SEG_HEADS_REGISTRY.register()
class EntityHead(nn.Module):
    """Mask2Former's head (CVPR 2022, section 3.2), with ancestors.

    Its children are named as in the official implementation, so that published checkpoints load.
    """

    @configurable
    def __init__(self, *, pixel_decoder: Any, predictor: nn.Module, in_features: list[str]):
        """
        Args:
            pixel_decoder: features of the backbone to per-pixel embeddings and a pyramid for the queries.
            predictor: queries to classes, masks and ancestors.
            in_features: names of the backbone's maps that are used.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.in_features = list(in_features)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_features = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        missing = [name for name in in_features if name not in input_shape]
        if missing:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES asks for {missing}, but the backbone {cfg.MODEL.BACKBONE.NAME} gives "
                f"{sorted(input_shape)}; for ResNets, set MODEL.RESNETS.OUT_FEATURES"
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, {name: input_shape[name] for name in in_features}),
            "predictor": build_transformer_decoder(cfg, cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM),
            "in_features": in_features,
        }

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        """The predictor's outputs for the backbone's (B, C, H / stride, W / stride) maps."""
        mask_features, _, multi_scale_features = self.pixel_decoder.forward_features(
            {name: features[name] for name in self.in_features}
        )
        return self.predictor(multi_scale_features, mask_features)

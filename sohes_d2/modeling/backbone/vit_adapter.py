"""ViT-Adapter (Chen et al., ICLR 2023): a plain ViT as a backbone for dense prediction."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from .adapter_modules import (
    InteractionBlock,
    SpatialPriorModule,
    TokenLayout,
    build_norm,
    init_convolution,
    split_maps,
)
from .vit import STRIDES, ViT, ViTBackbone

EXTRA_EXTRACTORS = 2  # after the last stage (official code)


class ViTAdapter(ViTBackbone):
    """Maps of strides 4, 8, 16 and 32 from a ViT and a spatial prior that interact in stages (section 3.1).

    The ViT's blocks are split into stages, as evenly as possible. At the end the ViT's map is resized to each stride,
    added to the spatial branch's map and normalised. Unlike in the official code, class and register tokens stay in the
    ViT's sequence, since it was pretrained with them, and its token stride may be 8, 16 or 32.
    """

    @configurable
    def __init__(
        self,
        vit: ViT,
        *,
        num_interactions: int = 4,
        conv_inplane: int = 64,
        num_heads: int = 12,
        num_points: int = 4,
        deform_ratio: float = 0.5,
        cffn_ratio: float = 0.25,
        drop_path: float = 0.0,
        norm: str = "SyncBN",
    ) -> None:
        """
        Args:
            vit: the ViT; its ``gradient_checkpointing`` applies to the adapter, too.
            num_interactions: number of stages, at most the ViT's depth.
            conv_inplane: channels of the spatial prior's stem.
            num_heads: heads of the deformable attention; divides the value channels.
            num_points: samples per head and map.
            deform_ratio: value channels of deformable attention over the ViT's channels.
            cffn_ratio: hidden channels of the convolutional FFN over the ViT's channels.
            drop_path: probability that a convolutional FFN is skipped in training.
            norm: in the spatial prior and of the outputs: "SyncBN", "BN", "GN" or "LN".

        Raises:
            ValueError: numbers that do not fit together; the message names the config key.
        """
        super().__init__(vit)
        dim, depth = vit.dim, vit.depth
        if not 1 <= num_interactions <= depth:
            raise ValueError(
                f"MODEL.VIT_ADAPTER.NUM_INTERACTIONS {num_interactions} is not between 1 and the {depth} blocks of "
                f"{vit.name!r}."
            )
        values = int(dim * deform_ratio)
        if num_heads < 1 or values < num_heads or values % num_heads:
            fitting = [heads for heads in range(1, min(values, 32) + 1) if values % heads == 0]
            raise ValueError(
                f"MODEL.VIT_ADAPTER.NUM_HEADS {num_heads} does not divide the {values} value channels (DEFORM_RATIO "
                f"{deform_ratio} x {dim} channels of {vit.name!r}); these do: {', '.join(map(str, fitting))}."
            )
        self.spatial_prior = SpatialPriorModule(dim, inplanes=conv_inplane, norm=norm)
        self.level_embed = nn.Parameter(torch.empty(3, dim))
        nn.init.normal_(self.level_embed)
        # Block indices at which stages start and end, e.g. 0, 3, 6, 9, 12.
        self.stage_bounds = [depth * stage // num_interactions for stage in range(num_interactions + 1)]
        self.interactions = nn.ModuleList(
            InteractionBlock(
                dim,
                num_heads=num_heads,
                num_points=num_points,
                deform_ratio=deform_ratio,
                cffn_ratio=cffn_ratio,
                drop_path=drop_path,
                num_extractors=1 + (EXTRA_EXTRACTORS if stage == num_interactions - 1 else 0),
                gradient_checkpointing=vit.gradient_checkpointing,
            )
            for stage in range(num_interactions)
        )
        self.up = nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2)
        init_convolution(self.up)
        self.norms = nn.ModuleDict({name: build_norm(norm, dim) for name in STRIDES})

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        node, adapter = cfg.MODEL.VIT, cfg.MODEL.VIT_ADAPTER
        return {
            "vit": ViT.from_config(node),
            "num_interactions": adapter.NUM_INTERACTIONS,
            "conv_inplane": adapter.CONV_INPLANE,
            "num_heads": adapter.NUM_HEADS,
            "num_points": adapter.NUM_POINTS,
            "deform_ratio": adapter.DEFORM_RATIO,
            "cffn_ratio": adapter.CFFN_RATIO,
            "drop_path": node.DROP_PATH,
            "norm": adapter.NORM,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W), sides divisible by 32 -> {"res2".."res5": (B, C, H / s, W / s)}, s = 4..32.

        Raises:
            ValueError: a side that is not divisible by 32.
        """
        height, width = self.checked_size(images)
        grid = self.vit.grid_size(height, width)
        levels = [(height // stride, width // stride) for stride in (8, 16, 32)]
        layout = TokenLayout.of(grid, levels, images)

        stride4, *coarser = self.spatial_prior(images)
        spatial = torch.cat(
            [level.flatten(2).transpose(1, 2) + embed for level, embed in zip(coarser, self.level_embed)], dim=1
        )
        tokens = self.vit.embed(images)
        for stage, start, stop in zip(self.interactions, self.stage_bounds, self.stage_bounds[1:]):
            run_blocks = partial(self.vit.run_blocks, start=start, stop=stop)
            tokens, spatial = stage(tokens, spatial, layout, run_blocks)

        stride8, stride16, stride32 = split_maps(spatial, levels)
        # Under autocast tokens are float32 but convolution outputs are not; keep the largest maps in half precision.
        vit_map = self.vit.to_map(tokens.to(stride4.dtype), grid)
        stride4 = self.up(stride8) + stride4
        maps = zip(STRIDES, (stride4, stride8, stride16, stride32))
        return {name: self.norms[name](level + resize_map(vit_map, level.shape[-2:])) for name, level in maps}


def resize_map(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map (B, C, H, W) to ``size``, a multiple or a fraction of its own: bilinearly or by averaging cells.

    For a factor of 2 averaging equals bilinear resizing; for 4 the latter would skip cells.
    """
    if features.shape[-1] > size[1]:
        return F.avg_pool2d(features, features.shape[-1] // size[1])
    if features.shape[-1] < size[1]:
        return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
    return features


@BACKBONE_REGISTRY.register()
def build_vit_adapter_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> ViTAdapter:
    """Build a ViT-Adapter from MODEL.VIT and MODEL.VIT_ADAPTER, with random weights until ``load_pretrained``."""
    return ViTAdapter(cfg, input_shape)

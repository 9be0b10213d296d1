"""The simple feature pyramid of ViTDet (Li et al., ECCV 2022): a plain ViT as a light backbone."""

from __future__ import annotations

from torch import Tensor, nn

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from .adapter_modules import build_norm
from .vit import STRIDES, ViT, ViTBackbone

_NORM_KEY = "MODEL.VIT_PYRAMID.NORM"


class ViTPyramid(ViTBackbone):
    """Maps of strides 4, 8, 16 and 32 from the last tokens of a ViT alone (ViTDet, section 3, simple feature pyramid).

    The token map is enlarged by transposed convolutions of stride 2, with a norm and GELU between two of them, or
    reduced by max pooling, and normalised. ViTDet's convolutions after each map are left to the pixel decoder, whose
    first layers project the maps. There is no convolutional branch as in ViT-Adapter, so an iteration is cheaper, and
    details finer than a token come from the tokens' channels alone.
    """

    @configurable
    def __init__(self, vit: ViT, *, norm: str = "LN") -> None:
        """
        Args:
            vit: the ViT.
            norm: "SyncBN", "BN", "GN" or "LN".

        Raises:
            ValueError: an unknown norm.
        """
        super().__init__(vit)
        self.levels = nn.ModuleDict(
            {name: _resampling(vit.dim, vit.token_stride, stride, norm) for name, stride in STRIDES.items()}
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        return {"vit": ViT.from_config(cfg.MODEL.VIT), "norm": cfg.MODEL.VIT_PYRAMID.NORM}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W), sides divisible by 32 -> {"res2".."res5": (B, C, H / s, W / s)}, s = 4..32.

        Raises:
            ValueError: a side that is not divisible by 32.
        """
        grid = self.vit.grid_size(*self.checked_size(images))
        tokens = self.vit.run_blocks(self.vit.embed(images), 0, self.vit.depth)
        vit_map = self.vit.to_map(tokens, grid)
        return {name: level(vit_map) for name, level in self.levels.items()}


def _resampling(dim: int, token_stride: int, stride: int, norm: str) -> nn.Sequential:
    """Layers from a map of ``token_stride`` to one of ``stride``, normalised."""
    layers: list[nn.Module] = []
    while token_stride > stride:
        layers += [nn.ConvTranspose2d(dim, dim, kernel_size=2, stride=2), build_norm(norm, dim, _NORM_KEY), nn.GELU()]
        token_stride //= 2
    if token_stride < stride:
        layers.append(nn.MaxPool2d(stride // token_stride))
    else:
        layers = layers[:-2]  # the final norm replaces these; there is no final activation
    return nn.Sequential(*layers, build_norm(norm, dim, _NORM_KEY))


@BACKBONE_REGISTRY.register()
def build_vit_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> ViTPyramid:
    """Build a ViT with a simple feature pyramid from MODEL.VIT and MODEL.VIT_PYRAMID, with random weights."""
    return ViTPyramid(cfg, input_shape)

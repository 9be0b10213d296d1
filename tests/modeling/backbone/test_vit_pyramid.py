"""The ViT alone with ViTDet's simple feature pyramid: maps, values, gradients, layers, config."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sohes_d2 import add_sohes_config
from sohes_d2.modeling.backbone import ViT, ViTPyramid

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 64}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def build(token_stride: int = 8, norm: str = "LN", **vit) -> ViTPyramid:
    torch.manual_seed(0)
    return ViTPyramid(ViT("vit_small_patch8_224.dino", options=SMALL, token_stride=token_stride, **vit), norm=norm)


@pytest.mark.parametrize("token_stride", [8, 16, 32])
@pytest.mark.parametrize("norm", ["SyncBN", "BN", "GN", "LN"])
def test_maps_of_four_strides(token_stride, norm):
    backbone = build(token_stride, norm)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, 24, 64 // s, 96 // s) for name, s in STRIDES.items()
    }
    assert all(m.isfinite().all() for m in maps.values())
    assert backbone.output_shape() == {name: ShapeSpec(channels=24, stride=s) for name, s in STRIDES.items()}


@pytest.mark.parametrize("token_stride", [8, 16, 32])
def test_maps_are_the_last_tokens_resized(token_stride):
    backbone = build(token_stride).eval()
    for module in backbone.levels.modules():
        if isinstance(module, nn.ConvTranspose2d):  # copy each cell to four
            nn.init.zeros_(module.bias)
            module.weight.data = torch.eye(24)[:, :, None, None].repeat(1, 1, 2, 2)
    seen = []
    backbone.vit.model.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    maps = backbone(torch.randn(1, 3, 64, 96))
    tokens = seen[0][:, 1:].reshape(1, 64 // token_stride, 96 // token_stride, 24).permute(0, 3, 1, 2)

    def normalised(features):
        return F.layer_norm(features.permute(0, 2, 3, 1), (24,), eps=1e-6).permute(0, 3, 1, 2)

    for name, stride in STRIDES.items():
        expected = tokens
        if stride >= token_stride:
            expected = normalised(F.max_pool2d(tokens, stride // token_stride))
        else:
            for step in range((token_stride // stride).bit_length() - 1):
                expected = F.gelu(expected) if step else expected
                expected = normalised(F.interpolate(expected, scale_factor=2, mode="nearest"))
        torch.testing.assert_close(maps[name], expected, atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient_unless_the_vit_is_frozen():
    for freeze in (False, True):
        backbone = build(freeze=freeze).train()
        weights = torch.Generator().manual_seed(1)
        maps = backbone(torch.randn(2, 3, 64, 96))
        sum((m * torch.randn(m.shape, generator=weights)).sum() for m in maps.values()).backward()
        without = {name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
        assert without == (
            {name for name, _ in backbone.named_parameters() if name.startswith("vit.")} if freeze else set()
        )


def test_autocast_gives_nearly_the_same_and_images_do_not_mix():
    backbone = build().eval()
    images = torch.randn(3, 3, 64, 96)
    together = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = backbone(images)
    for name, alone in backbone(images[1:2]).items():
        torch.testing.assert_close(together[name][1:2], alone, atol=1e-4, rtol=1e-4)
        error = (rounded[name].float() - together[name]).square().mean().sqrt() / together[name].std()
        assert error < 0.05, name


def test_layers_cover_every_parameter():
    backbone = build()
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert set(layers.values()) == set(range(backbone.num_layers)) == set(range(5))
    assert {name for name, layer in layers.items() if layer == 4} == {
        name for name in layers if name.startswith("levels.")
    }
    with pytest.raises(ValueError, match="not a parameter of ViTPyramid; remove a prefix"):
        backbone.layer_of("backbone.levels.res2.0.weight")


def test_errors_name_their_cause():
    with pytest.raises(ValueError, match="ViTPyramid takes images with sides divisible by 32.*got 64 x 80"):
        build()(torch.zeros(1, 3, 64, 80))
    with pytest.raises(ValueError, match="MODEL.VIT_PYRAMID.NORM 'batch' is not one of"):
        build(norm="batch")


def test_the_config_builds_it():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_vit_pyramid_backbone"
    cfg.MODEL.VIT.OPTIONS.update(SMALL)
    cfg.MODEL.VIT.TOKEN_STRIDE = 16
    cfg.MODEL.VIT_PYRAMID.NORM = "BN"
    backbone = build_backbone(cfg)
    assert isinstance(backbone, ViTPyramid)
    assert (backbone.vit.token_stride, backbone.vit.dim, backbone.vit.depth) == (16, 24, 3)
    assert isinstance(backbone.levels["res2"][-1], nn.BatchNorm2d)

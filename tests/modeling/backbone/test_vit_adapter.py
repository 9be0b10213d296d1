"""The whole backbone: maps, values, alignment, gradients, layers, config."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from sohes_d2 import add_sohes_config
from sohes_d2.modeling.backbone import ViT, ViTAdapter
from sohes_d2.modeling.backbone.vit_adapter import resize_map
from sohes_d2.modeling.deformable_attention import MSDeformAttn

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

SMALL = {"embed_dim": 24, "depth": 4, "num_heads": 2, "img_size": 64}
NAMES = {8: "vit_small_patch8_224.dino", 14: "vit_small_patch14_reg4_dinov2.lvd142m", 16: "vit_tiny_patch16_224"}
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


def build(patch: int = 16, *, depth: int = 4, vit: dict | None = None, **options) -> ViTAdapter:
    """A small seeded backbone. ``vit`` are arguments of the ViT, the others of the adapter."""
    torch.manual_seed(0)
    side = {} if patch != 14 else {"img_size": 56}
    vit_only = ViT(NAMES[patch], options={**SMALL, **side, "depth": depth}, **(vit or {}))
    return ViTAdapter(vit_only, **{"num_interactions": 2, "num_heads": 3, "conv_inplane": 4, "norm": "GN", **options})


def open_injectors(backbone: ViTAdapter) -> None:
    for stage in backbone.interactions:
        nn.init.ones_(stage.injector.gamma)


@pytest.mark.parametrize(("patch", "stride"), [(8, 0), (8, 16), (14, 0), (14, 8), (16, 0), (16, 32)])
@pytest.mark.parametrize("norm", ["SyncBN", "GN"])
def test_maps_of_four_strides(patch, stride, norm):
    backbone = build(patch, vit={"token_stride": stride}, norm=norm)
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, 24, 64 // s, 96 // s) for name, s in STRIDES.items()
    }
    assert all(m.isfinite().all() and m.is_contiguous() for m in maps.values())
    assert {n: (spec.channels, spec.stride) for n, spec in backbone.output_shape().items()} == {
        name: (24, s) for name, s in STRIDES.items()
    }
    assert backbone.size_divisibility == 32


def test_sides_must_divide_by_32():
    with pytest.raises(ValueError, match="divisible by 32.*got 64 x 80"):
        build()(torch.zeros(1, 3, 64, 80))


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_the_initial_vit_equals_that_of_timm(patch):
    backbone = build(patch).eval()
    seen = []
    backbone.interactions[-1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    side = 64 if patch != 14 else 56
    twin = timm.create_model(NAMES[patch], num_classes=0, dynamic_img_size=True, **{**SMALL, "img_size": side}).eval()
    twin.load_state_dict(backbone.vit.model.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    backbone(images)
    size = (64 // backbone.vit.token_stride * patch,) * 2
    expected = twin.forward_features(F.interpolate(images, size=size, mode="bicubic", antialias=True))
    torch.testing.assert_close(twin.norm(seen[0]), expected, atol=1e-5, rtol=1e-4)
    open_injectors(backbone)
    backbone(images)
    assert not torch.allclose(seen[1], seen[0], atol=1e-3)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_each_map_is_the_sum_of_both_branches(stride):
    backbone = build(8, vit={"token_stride": stride}).eval()
    images = torch.randn(1, 3, 64, 96)
    backbone.norms = nn.ModuleDict({name: nn.Identity() for name in STRIDES})
    both = backbone(images)
    seen = []
    for module in (backbone.interactions[-1], backbone.spatial_prior):
        module.register_forward_hook(lambda m, i, output: seen.append(output))
    backbone(images)
    prior, (tokens, spatial) = seen
    vit_map = tokens[:, 1:].reshape(1, 64 // stride, 96 // stride, 24).permute(0, 3, 1, 2)
    res3 = spatial[:, :96].reshape(1, 8, 12, 24).permute(0, 3, 1, 2)
    res4 = spatial[:, 96:120].reshape(1, 4, 6, 24).permute(0, 3, 1, 2)
    res5 = spatial[:, 120:].reshape(1, 2, 3, 24).permute(0, 3, 1, 2)
    for (name, size), own in zip(STRIDES.items(), (prior[0] + backbone.up(res3), res3, res4, res5)):
        resized = vit_map
        if size > stride:
            resized = F.adaptive_avg_pool2d(vit_map, (64 // size, 96 // size))
        elif size < stride:
            resized = F.interpolate(vit_map, scale_factor=stride // size, mode="bilinear")
        torch.testing.assert_close(both[name], own + resized)


def test_resizing_by_half_is_bilinear_and_by_a_quarter_misses_no_cell():
    features = torch.randn(1, 2, 8, 16)
    half = F.interpolate(features, size=(4, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(resize_map(features, (4, 8)), half)
    features.requires_grad_()
    resize_map(features, (2, 4)).sum().backward()
    torch.testing.assert_close(features.grad, torch.full_like(features, 1 / 16))


@pytest.mark.parametrize(("patch", "stride"), [(8, 8), (8, 16), (14, 16), (16, 32)])
@pytest.mark.parametrize("place", [(48, 208), (176, 80)])
def test_a_dot_changes_every_map_at_its_position(patch, stride, place):
    backbone = build(patch, vit={"token_stride": stride}, norm="BN").eval()
    open_injectors(backbone)
    for block in backbone.vit.model.blocks:
        nn.init.zeros_(block.attn.proj.weight)  # without attention, the ViT processes each token alone
    for stage in backbone.interactions:
        for module in (stage.injector, *stage.extractors):
            nn.init.zeros_(module.attn.sampling_offsets.bias)
    nn.init.zeros_(backbone.spatial_prior.fc1.weight)  # stride 4 then depends on the tokens only
    plain = torch.randn(1, 3, 224, 288, generator=torch.Generator().manual_seed(3))
    dotted = plain.clone()
    y, x = place
    dotted[..., y - 8 : y + 8, x - 8 : x + 8] += 10.0
    before, after = backbone(plain), backbone(dotted)
    for name, size in STRIDES.items():
        change = (after[name] - before[name]).detach().square().sum(1)[0]
        rows = (torch.arange(change.shape[0]) + 0.5) * size
        cols = (torch.arange(change.shape[1]) + 0.5) * size
        center_y = float((change.sum(1) * rows).sum() / change.sum())
        center_x = float((change.sum(0) * cols).sum() / change.sum())
        assert abs(center_y - y) < 16, name
        assert abs(center_x - x) < 16, name
        far = ((rows - y).abs() > 120)[:, None] | ((cols - x).abs() > 120)[None]
        assert change[far].max() < 1e-3 * change.max(), name


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_every_parameter_gets_a_gradient(patch):
    backbone = build(patch)
    open_injectors(backbone)
    for module in backbone.modules():
        if isinstance(module, MSDeformAttn):  # initial offsets and weights ignore the query
            nn.init.normal_(module.sampling_offsets.weight, std=0.1)
            nn.init.normal_(module.attention_weights.weight, std=0.1)
    maps = backbone(torch.randn(2, 3, 64, 96))
    weights = torch.Generator().manual_seed(1)
    sum((m * torch.randn(m.shape, generator=weights)).sum() for m in maps.values()).backward()
    without = [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_frozen_vit_still_carries_gradients_to_the_injectors():
    backbone = build(vit={"freeze": True, "drop_path": 0.5}).train()
    maps = backbone(torch.randn(2, 3, 64, 64))
    sum(m.square().sum() for m in maps.values()).backward()
    grads = {name: p.grad for name, p in backbone.named_parameters()}
    assert all((grad is None) == name.startswith("vit.") for name, grad in grads.items())
    assert grads["interactions.0.injector.gamma"].abs().min() > 0
    assert not backbone.vit.model.training
    assert backbone.spatial_prior.training


def test_checkpointing_changes_neither_outputs_nor_gradients():
    results = []
    for again in (False, True):
        backbone = build(14, vit={"drop_path": 0.3, "gradient_checkpointing": again}, drop_path=0.3, norm="BN")
        open_injectors(backbone)
        calls = []
        for module in (backbone.interactions[0].injector.attn, backbone.interactions[1].extractors[2].ffn):
            module.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        maps = backbone(images)
        sum((m * (i + 1)).square().mean() for i, m in enumerate(maps.values())).backward()
        assert len(calls) == (4 if again else 2)
        results.append([*maps.values(), *(p.grad for p in backbone.parameters()), *backbone.buffers()])
    for plain, recomputed in zip(*results):
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_autocast_gives_nearly_the_same():
    backbone = build(8, vit={"token_stride": 16}).eval()
    open_injectors(backbone)
    images = torch.randn(1, 3, 64, 96)
    expected = backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = backbone(images)
    for name, m in maps.items():
        error = (m.float() - expected[name]).square().mean().sqrt() / expected[name].std()
        assert error < 0.05, name


def test_images_of_a_batch_do_not_mix():
    backbone = build(8, vit={"token_stride": 16}).eval()
    open_injectors(backbone)
    images = torch.randn(3, 3, 64, 96)
    together = backbone(images)
    for name, alone in backbone(images[1:2]).items():
        torch.testing.assert_close(together[name][1:2], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("patch", [14, 16])
def test_layers_cover_every_parameter(patch):
    backbone = build(patch)
    layers = {name: backbone.layer_of(name) for name, _ in backbone.named_parameters()}
    assert backbone.num_layers == 6
    assert set(layers.values()) == set(range(6))
    for name, layer in layers.items():
        if ".blocks." in name:
            assert layer == 1 + int(name.split(".blocks.")[1].split(".")[0])
        else:
            assert layer == (0 if name.startswith("vit.") else 5)
    embeddings = {name for name, layer in layers.items() if layer == 0}
    tokens = {"cls_token", "reg_token"} if patch == 14 else {"cls_token"}
    tokens |= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert embeddings == {f"vit.model.{name}" for name in tokens}
    with pytest.raises(ValueError, match="backbone.vit.*remove a prefix"):
        backbone.layer_of("backbone.vit.model.cls_token")


@pytest.mark.parametrize(("depth", "stages", "bounds"), [(4, 4, [0, 1, 2, 3, 4]), (4, 3, [0, 1, 2, 4]), (4, 1, [0, 4])])
def test_blocks_are_split_into_stages(depth, stages, bounds):
    backbone = build(depth=depth, num_interactions=stages)
    assert backbone.stage_bounds == bounds
    assert [len(stage.extractors) for stage in backbone.interactions] == [1] * (stages - 1) + [3]
    calls = []
    for number, block in enumerate(backbone.vit.model.blocks):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    backbone(torch.zeros(1, 3, 64, 64))
    assert calls == list(range(depth))


def test_inconsistent_numbers_are_reported_with_their_key():
    with pytest.raises(
        ValueError, match=r"MODEL.VIT_ADAPTER.NUM_HEADS 5 does not divide the 12 .*these do: 1, 2, 3, 4, 6, 12"
    ):
        build(num_heads=5)
    for stages in (0, 5):
        with pytest.raises(ValueError, match=f"MODEL.VIT_ADAPTER.NUM_INTERACTIONS {stages} is not between 1 and the 4"):
            build(num_interactions=stages)
    with pytest.raises(ValueError, match="MODEL.VIT_ADAPTER.NORM"):
        build(norm="batch")


def config(**vit):
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_vit_adapter_backbone"
    cfg.MODEL.VIT.update(vit)
    cfg.MODEL.VIT.OPTIONS.update(SMALL)
    cfg.MODEL.VIT_ADAPTER.update({"NUM_HEADS": 4, "CONV_INPLANE": 4, "NUM_INTERACTIONS": 2, "NORM": "LN"})
    cfg.freeze()
    return cfg


def test_the_config_builds_it():
    backbone = build_backbone(config(TOKEN_STRIDE=32, DROP_PATH=0.3, GRADIENT_CHECKPOINTING=True, FREEZE=True))
    assert isinstance(backbone, ViTAdapter)
    assert (backbone.vit.name, backbone.vit.patch_size, backbone.vit.token_stride) == (
        NAMES[8].replace("small", "base"),
        8,
        32,
    )
    assert (backbone.vit.dim, backbone.vit.depth, backbone.vit.frozen) == (24, 4, True)
    assert backbone.vit.model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    stage = backbone.interactions[-1]
    assert backbone.vit.gradient_checkpointing
    assert stage.gradient_checkpointing
    assert (stage.injector.attn.n_heads, stage.injector.attn.value_proj.out_features) == (4, 12)
    assert stage.extractors[0].ffn.fc1.out_features == 6
    assert stage.extractors[0].drop_path.drop_prob == pytest.approx(0.3)
    assert isinstance(backbone.norms["res2"], nn.LayerNorm)
    maps = backbone(torch.zeros(1, 3, 32, 64))
    assert {name: tuple(m.shape[1:]) for name, m in maps.items()} == {
        name: (spec.channels, 32 // spec.stride, 64 // spec.stride) for name, spec in backbone.output_shape().items()
    }
    assert backbone.output_shape()["res5"] == ShapeSpec(channels=24, stride=32)


def test_load_pretrained_changes_only_the_vit(tmp_path):
    source = timm.create_model(NAMES[8], num_classes=0, **{**SMALL, "img_size": 32})
    torch.save(source.state_dict(), tmp_path / "dino.pth")
    backbone = build(8)
    before = {name: p.clone() for name, p in backbone.named_parameters()}
    report = backbone.load_pretrained(str(tmp_path / "dino.pth"))
    assert report.origin == "file:dino.pth"
    after = dict(backbone.named_parameters())
    assert torch.equal(after["vit.model.blocks.3.mlp.fc2.weight"], source.blocks[3].mlp.fc2.weight)
    assert after["vit.model.pos_embed"].shape == (1, 1 + 8 * 8, 24)  # resampled to this model's grid
    assert all(torch.equal(before[name], p) for name, p in after.items() if not name.startswith("vit."))

"""The ViT: equal to timm's, on any grid."""

from __future__ import annotations

import pytest
import timm
import torch
from torch.nn import functional as F

from sohes_d2.errors import WeightsError
from sohes_d2.modeling.backbone import ViT

SMALL = {"embed_dim": 24, "depth": 3, "num_heads": 2}
DINO8 = "vit_small_patch8_224.dino"
DINOV2 = "vit_small_patch14_dinov2.lvd142m"  # LayerScale
DINOV2_REG = "vit_small_patch14_reg4_dinov2.lvd142m"  # and registers
PLAIN16 = "vit_tiny_patch16_224"


def build(name: str, side: int = 64, **options) -> ViT:
    """A small seeded ViT whose position embedding is for a square of ``side`` pixels."""
    torch.manual_seed(0)
    own = {
        key: options.pop(key)
        for key in ("token_stride", "drop_path", "gradient_checkpointing", "freeze", "positions")
        if key in options
    }
    return ViT(name, options={**SMALL, "img_size": side, **options}, **own)


def timm_twin(vit: ViT, side: int = 64, **options) -> torch.nn.Module:
    """timm's complete model with the weights of ``vit``, in evaluation mode."""
    model = timm.create_model(vit.name, num_classes=0, dynamic_img_size=True, **{**SMALL, "img_size": side, **options})
    assert not model.load_state_dict(vit.model.state_dict(), strict=False).unexpected_keys
    return model.eval()


def all_tokens(vit: ViT, images: torch.Tensor) -> torch.Tensor:
    return vit.run_blocks(vit.embed(images), 0, vit.depth)


@pytest.mark.parametrize(
    ("name", "patch", "prefix", "options"),
    [
        (DINO8, 8, 1, {}),
        (DINOV2, 14, 1, {}),
        (DINOV2_REG, 14, 5, {}),
        (PLAIN16, 16, 1, {}),
        (PLAIN16, 16, 0, {"class_token": False, "global_pool": "avg"}),
        ("vit_base_patch16_clip_224", 16, 1, {}),  # a norm before the blocks
        ("deit3_small_patch16_224", 16, 1, {}),
        ("vit_base_patch32_224", 32, 1, {}),
    ],
)
@pytest.mark.parametrize("grid", [(4, 4), (4, 6)])
def test_tokens_are_those_of_timm(name, patch, prefix, options, grid):
    vit = build(name, side=4 * patch, positions="timm", **options).eval()
    assert (vit.patch_size, vit.num_prefix_tokens, vit.dim, vit.depth) == (patch, prefix, 24, 3)
    assert not any(key.startswith(("norm.", "fc_norm", "head", "attn_pool")) for key in vit.model.state_dict())
    twin = timm_twin(vit, side=4 * patch, **options)
    stride = vit.token_stride
    images = torch.randn(2, 3, grid[0] * stride, grid[1] * stride)
    tokens = all_tokens(vit, images)
    assert tokens.shape == (2, prefix + grid[0] * grid[1], 24)
    resized = F.interpolate(images, size=(grid[0] * patch, grid[1] * patch), mode="bicubic", antialias=True)
    expected = twin.forward_features(resized)
    torch.testing.assert_close(twin.norm(tokens), expected, atol=1e-5, rtol=1e-4)


def test_positions_of_dino_are_resampled_as_official_by_default():
    images = torch.randn(1, 3, 32, 48)
    official, timms = build(DINO8, side=64), build(DINO8, side=64, positions="timm")
    assert (official.embed(images) - timms.embed(images)).abs().max() > 1e-3
    own = torch.randn(1, 3, 64, 64)
    assert torch.equal(official.embed(own), timms.embed(own))
    assert torch.equal(
        build(DINOV2_REG, side=56).embed(images[..., :32]),
        build(DINOV2_REG, side=56, positions="timm").embed(images[..., :32]),
    )
    with pytest.raises(ValueError, match="MODEL.VIT.POSITIONS: POSITIONS 'x' is not one of"):
        build(DINO8, positions="x")


def test_position_embedding_is_unchanged_on_its_own_grid():
    vit = build(PLAIN16)
    images = torch.randn(1, 3, 64, 64)
    patches = vit.model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    assert torch.equal(vit.embed(images), torch.cat([vit.model.cls_token, patches], 1) + vit.model.pos_embed)


def test_position_embedding_follows_the_grid_and_gets_its_gradient():
    vit = build(PLAIN16)
    rows = torch.linspace(-1, 1, 4)
    with torch.no_grad():
        vit.model.patch_embed.proj.weight.zero_()
        vit.model.patch_embed.proj.bias.zero_()
        vit.model.pos_embed.zero_()
        vit.model.pos_embed[0, 1:, 0] = rows.repeat_interleave(4)  # channel 0 encodes the row
    values = vit.embed(torch.zeros(1, 3, 128, 96))[0, 1:, 0].view(8, 6)
    torch.testing.assert_close(values, values[:, :1].expand(-1, 6))
    assert (values[1:, 0] > values[:-1, 0]).all()
    values.sum().backward()
    assert (vit.model.pos_embed.grad[0, 1:, 0] > 0).all()


def test_patch_8_at_stride_16_gets_the_image_at_half_size():
    images = torch.rand(2, 3, 64, 96)
    vit = build(DINO8, token_stride=16).eval()
    assert vit.grid_size(64, 96) == (4, 6)
    half = F.interpolate(images, size=(32, 48), mode="bicubic", antialias=True)
    full = build(DINO8).eval()
    assert full.token_stride == 8
    assert torch.equal(all_tokens(vit, images), all_tokens(full, half))
    assert not torch.allclose(vit.embed(images), full.embed(images[..., ::2, ::2]))  # antialiased, not subsampled


@pytest.mark.parametrize(
    ("name", "asked", "stride", "grid"),
    [
        (DINO8, 0, 8, (8, 12)),
        (DINO8, 32, 32, (2, 3)),
        (DINOV2, 0, 16, (4, 6)),
        (DINOV2, 8, 8, (8, 12)),
        (PLAIN16, 0, 16, (4, 6)),
        ("vit_base_patch32_224", 0, 32, (2, 3)),
    ],
)
def test_token_stride_sets_the_grid(name, asked, stride, grid):
    vit = build(name, side=224, token_stride=asked)
    assert vit.token_stride == stride
    assert vit.grid_size(64, 96) == grid
    assert vit.embed(torch.zeros(1, 3, 64, 96)).shape[1] == 1 + grid[0] * grid[1]


def test_attention_is_scaled_dot_product_attention(monkeypatch):
    calls = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    all_tokens(build(PLAIN16), torch.zeros(1, 3, 32, 32))
    assert len(calls) == 3


def test_drop_path_increases_linearly_and_acts_only_in_training():
    vit = build(PLAIN16, drop_path=0.4)
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in vit.model.blocks] == pytest.approx([0, 0.2, 0.4])
    images = torch.randn(4, 3, 32, 32)
    assert torch.equal(all_tokens(vit.eval(), images), all_tokens(vit, images))
    assert not torch.equal(all_tokens(vit.train(), images), all_tokens(vit, images))


@pytest.mark.parametrize("freeze", [False, True])
def test_checkpointing_changes_neither_outputs_nor_gradients(freeze):
    results = []
    for again in (False, True):
        vit = build(DINOV2_REG, drop_path=0.5, gradient_checkpointing=again, freeze=freeze)
        images = torch.randn(3, 3, 64, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(2)
        tokens = all_tokens(vit, images)
        tokens.square().sum().backward()
        results.append([tokens, images.grad, *(p.grad for p in vit.parameters() if not freeze)])
    for plain, recomputed in zip(*results):
        torch.testing.assert_close(recomputed, plain, atol=0, rtol=0)


def test_checkpointing_recomputes_in_the_backward_pass():
    vit = build(PLAIN16, gradient_checkpointing=True)
    calls = []
    vit.model.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    tokens = all_tokens(vit, torch.zeros(1, 3, 32, 32))
    assert len(calls) == 1
    tokens.sum().backward()
    assert len(calls) == 2
    with torch.no_grad():
        all_tokens(vit, torch.zeros(1, 3, 32, 32))
    assert len(calls) == 3


def test_frozen_vit_stays_in_evaluation_without_gradients():
    vit = build(PLAIN16, drop_path=0.9, freeze=True).train()
    assert vit.training
    assert not any(module.training for module in vit.model.modules())
    assert not any(p.requires_grad for p in vit.parameters())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(all_tokens(vit, images), all_tokens(vit, images))


@pytest.mark.parametrize("name", [DINO8, DINOV2_REG])
def test_load_pretrained_from_a_file_in_timm_layout(name, tmp_path):
    torch.manual_seed(5)
    source = timm.create_model(name, num_classes=7, dynamic_img_size=True, **SMALL, img_size=56)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    vit = build(name, side=56, token_stride=8).eval()
    before = vit.model.blocks[0].attn.qkv.weight.clone()
    report = vit.load_pretrained(str(tmp_path / "weights.pth"))
    assert not torch.equal(before, vit.model.blocks[0].attn.qkv.weight)
    assert report.missing == ()
    assert set(report.unexpected) == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert report.loaded == len(vit.model.state_dict())
    images = torch.randn(1, 3, 56 // vit.patch_size * 8, 56 // vit.patch_size * 8)
    resized = F.interpolate(images, size=(56, 56), mode="bicubic", antialias=True)
    tokens = source.norm(all_tokens(vit, images))
    torch.testing.assert_close(tokens, source.eval().forward_features(resized), atol=1e-5, rtol=1e-4)


def test_weights_of_another_architecture_are_refused(tmp_path):
    torch.save(build(DINO8).model.state_dict(), tmp_path / "dino.pth")
    vit = build("vit_small_patch8_224", init_values=1e-5)  # with LayerScale, which the file lacks
    with pytest.raises(
        WeightsError, match=r"lack 6 tensors of 'vit_small_patch8_224' \(blocks.0.ls1.gamma.*MODEL.VIT.NAME"
    ):
        vit.load_pretrained(str(tmp_path / "dino.pth"))


def test_building_loads_nothing_and_random_weights_are_reproducible():
    first, second = build(PLAIN16), ViT(PLAIN16, options={**SMALL, "img_size": 64})
    assert not torch.equal(first.model.pos_embed, second.model.pos_embed)
    assert first.load_pretrained("random:3").digest == second.load_pretrained("random:3").digest
    assert torch.equal(first.model.pos_embed, second.model.pos_embed)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_base_patch8_224.dinoo", r"is not a model of timm .*Near matches: vit_base_patch8_224.dino,"),
        ("vit_smal_patch16_224", r"is not a model of timm .*Near matches: .*vit_small_patch16_224"),
        ("nothing_like_it", r"is not a model of timm .*timm.list_models\('vit_\*'\)"),
        ("resnet18", r"cannot be built as a VisionTransformer of timm"),
        ("test_efficientnet", r"cannot be built as a VisionTransformer of timm"),
        ("eva02_tiny_patch14_224", r"is a Eva of timm, not a VisionTransformer"),
    ],
)
def test_unknown_names_are_reported(name, message):
    with pytest.raises(ValueError, match=rf"^MODEL.VIT.NAME '{name}' {message}"):
        ViT(name)


def test_invalid_options_are_reported():
    with pytest.raises(ValueError, match="MODEL.VIT.OPTIONS {'dept': 2} cannot be built .*dept"):
        ViT(PLAIN16, options={"dept": 2})
    with pytest.raises(ValueError, match="MODEL.VIT.OPTIONS {'embed_dim': 25} cannot be built .*divisible"):
        ViT(PLAIN16, options={"embed_dim": 25})
    with pytest.raises(
        ValueError, match="MODEL.VIT.OPTIONS cannot set pretrained, drop_path_rate: .*MODEL.VIT.DROP_PATH"
    ):
        ViT(PLAIN16, options={"drop_path_rate": 0.1, "pretrained": True})
    with pytest.raises(ValueError, match="MODEL.VIT.TOKEN_STRIDE 12 is not 0, 8, 16 or 32"):
        ViT(PLAIN16, options=SMALL, token_stride=12)

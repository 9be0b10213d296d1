"""Features of ViTs of timm and of files of this project: values, and errors about options and files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from helpers.feature_config import config, photos
from safetensors.torch import save_file
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch.nn import functional as F

from sohes_d2.errors import WeightsError
from sohes_d2.exploration.features import ColorTextureExtractor, JointExtractor, build_feature_extractor, load_vit_file
from sohes_d2.exploration.features.base import run_until, to_input
from sohes_d2.exploration.features.vit import METADATA_KEY, ViTExtractor, project

NAME = "vit_tiny_patch16_224"
OPTIONS = {"patch_size": 8, "img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 2}


def vit(**options) -> ViTExtractor:
    return ViTExtractor("test_vit", **{"weights": "random", "token_budget": 48, **options})


@pytest.mark.parametrize(("facet", "part"), [("query", 0), ("key", 1), ("value", 2)])
@pytest.mark.parametrize("block", [-1, 2])
def test_facets_are_the_rows_of_qkv(facet, part, block):
    extractor = vit(facet=facet, block=block)
    images = photos(2)
    features = extractor.extract(images)

    model = extractor.model
    with torch.inference_mode():
        x = to_input(images, (5 * 16, 8 * 16), extractor.mean, extractor.std, torch.device("cpu"))
        x = model.norm_pre(model._pos_embed(model.patch_embed(x)))
        for layer in model.blocks[: extractor.block]:
            x = layer(x)
        attended = model.blocks[extractor.block]
        qkv = attended.attn.qkv(attended.norm1(x))
    expected = qkv.reshape(2, 1 + 40, 3, 64)[:, 1:, part].reshape(2, 5, 8, 64).numpy()
    assert features.shape == (2, 5, 8, 64) and features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert extractor.describe()["dims"] == 64


def test_tokens_are_the_normed_output_of_a_block():
    images = photos()
    x = to_input(images, (80, 128), (0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    last = vit(facet="token")
    with torch.inference_mode():
        expected = last.model.forward_features(x)[:, 1:].reshape(1, 5, 8, 64).numpy()
    np.testing.assert_allclose(last.extract(images), expected, atol=1e-6)
    third = vit(facet="token", block=2)
    with torch.inference_mode():
        [expected] = third.model.get_intermediate_layers(x, n=[2], norm=True)
    np.testing.assert_allclose(third.extract(images)[0].reshape(40, 64), expected[0].numpy(), atol=1e-6)


@pytest.mark.parametrize(
    "attention",
    [
        lambda: Attention(32, num_heads=4, qkv_bias=True, qk_norm=True, norm_layer=torch.nn.LayerNorm),
        lambda: Attention(32, num_heads=4, qkv_bias=False),
        lambda: AttentionRope(32, num_heads=4, qkv_fused=False, qk_norm=True, norm_layer=torch.nn.LayerNorm),
        lambda: EvaAttention(32, num_heads=4, norm_layer=torch.nn.LayerNorm),
        lambda: EvaAttention(32, num_heads=4, qkv_fused=False, norm_layer=torch.nn.LayerNorm),
    ],
    ids=["qk_norm", "no bias", "separate", "eva", "eva separate"],
)
def test_facets_are_what_the_attention_itself_uses(attention, monkeypatch):
    torch.manual_seed(0)
    module = attention().eval()
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    used = []

    def spy(q, k, v, **kwargs):
        used.extend([q, k, v])
        return v

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    x = torch.randn(2, 7, 32)
    with torch.inference_mode():
        module(x)
        for facet, expected in zip(("query", "key", "value"), used):
            assert torch.allclose(project(module, x, facet), expected.transpose(1, 2).flatten(2), atol=1e-6)


def test_register_and_class_tokens_are_left_out():
    name = "vit_small_patch14_reg4_dinov2"
    extractor = ViTExtractor(name, weights="random", token_budget=6)
    features = extractor.extract(photos(1, 40, 60))
    assert extractor.model.num_prefix_tokens == 5
    assert features.shape == (1, 2, 3, 384)


def test_rotary_vits_work():
    extractor = ViTExtractor("eva02_tiny_patch14_224", weights="random", token_budget=6)
    features = extractor.extract(photos(1, 40, 60))
    assert features.shape == (1, 2, 3, 192) and np.isfinite(features).all()


def test_extreme_images():
    extractor = vit(token_budget=3600)
    assert extractor.extract([np.full((1, 1, 3), 200, np.uint8)]).shape == (1, 1, 1, 64)
    assert vit(token_budget=100).extract(photos(1, 2000, 5)).shape == (1, 100, 1, 64)
    assert extractor.extract_at(photos(3, 7, 11), (2, 9)).shape == (3, 2, 9, 64)


def test_same_batch_same_bits_and_the_network_is_frozen():
    images = photos(3)
    extractor = vit()
    first = extractor.extract(images)
    assert np.array_equal(first, extractor.extract(images))
    assert np.array_equal(first, vit().extract(images))
    np.testing.assert_allclose(first[1:2], extractor.extract(images[1:2]), atol=1e-5)
    assert not extractor.model.training
    assert not any(parameter.requires_grad for parameter in extractor.model.parameters())


def test_bfloat16_is_close_and_returned_as_float32():
    exact, fast = vit().extract(photos()), vit(dtype="bfloat16").extract(photos())
    assert fast.dtype == np.float32
    cosine = (exact * fast).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(fast, axis=-1)
    assert cosine.min() > 0.99 and not np.array_equal(exact, fast)


def hooks(model: torch.nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_the_hook_is_removed_and_later_blocks_do_not_run():
    for facet in ("key", "token"):
        extractor = vit(block=1, facet=facet)
        ran = []
        for index, block in enumerate(extractor.model.blocks):
            block.register_forward_hook(lambda *args, index=index, ran=ran: ran.append(index))
        count = hooks(extractor.model)
        extractor.extract(photos())
        assert hooks(extractor.model) == count
        assert max(ran) <= 1
    model = extractor.model
    with pytest.raises(RuntimeError):
        run_until(model, model.blocks[1], torch.zeros(1, 4, 32, 32))  # four channels break the patch embedding
    assert hooks(model) == count
    with pytest.raises(RuntimeError, match="never called"):
        run_until(model, torch.nn.Identity(), torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([], "at least one"),
        ([np.zeros((4, 4, 3), np.float32)], "uint8 RGB"),
        ([np.zeros((4, 4), np.uint8)], "uint8 RGB"),
        (photos(1) + photos(1, 61), "one size"),
    ],
)
def test_bad_batches(images, says):
    with pytest.raises(ValueError, match=says):
        vit().extract(images)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"facet": "keys"}, "FACET 'keys' is not one of query, key"),
        ({"block": 6}, "BLOCK 6 is out of range: 'test_vit' has 6 blocks"),
        ({"block": -7}, "out of range"),
        ({"dtype": "float16"}, "needs a GPU"),
        ({"dtype": "half"}, "not one of float32"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        vit(**options)


def test_blocks_without_a_plain_attention_still_give_tokens():
    with pytest.raises(ValueError, match="FACET token"):
        ViTExtractor("vit_small_patch16_18x2_224", weights="random", facet="key")


def test_incomplete_weights_are_refused(tmp_path):
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    del state["blocks.3.attn.qkv.bias"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"file:part.pth lack 1 tensors of 'test_vit' \(blocks.3.attn.qkv.bias\)"):
        vit(weights=str(tmp_path / "part.pth"))


@pytest.fixture
def weights(tmp_path) -> str:
    extractor = ViTExtractor(NAME, options=OPTIONS, weights="random:1")
    path = str(tmp_path / "backbone.safetensors")
    header = {"name": NAME, "options": OPTIONS, "facet": "value"}
    save_file(extractor.model.state_dict(), path, metadata={METADATA_KEY: json.dumps(header)})
    return path


def test_the_file_contains_its_architecture(weights):
    found = load_vit_file(weights, token_budget=24)
    expected = ViTExtractor(NAME, options=OPTIONS, weights=weights, facet="value", token_budget=24)
    assert found.facet == "value" and found.dims == 24 and found.cell == 8
    np.testing.assert_array_equal(found.extract(photos(1, 48, 72)), expected.extract(photos(1, 48, 72)))
    built = build_feature_extractor(config(NAME="vit_file", WEIGHTS=weights, TOKEN_BUDGET=24))
    assert built.describe() == found.describe()
    assert load_vit_file(weights, facet="key").facet == "key"


def test_other_files_are_refused(tmp_path):
    plain = str(tmp_path / "plain.safetensors")
    save_file({"a": torch.zeros(1)}, plain)
    with pytest.raises(WeightsError, match="header does not name.*EXPLORATION.FEATURES.NAME"):
        load_vit_file(plain)
    with pytest.raises(WeightsError, match="does not exist"):
        load_vit_file(str(tmp_path / "none.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_vit_file(str(tmp_path / "cut.safetensors"))
    for text in ("{", "[1]", '{"options": {}}', '{"name": 3}', '{"name": "a", "options": []}', "[" * 100_000):
        save_file({"a": torch.zeros(1)}, plain, metadata={"sohes_d2": text})
        with pytest.raises(WeightsError, match="the header's entry 'sohes_d2'"):
            load_vit_file(plain)


def test_joint_by_config_has_the_grid_of_colour(weights):
    built = build_feature_extractor(config(NAME="joint", WEIGHTS=weights, TOKEN_BUDGET=216))
    assert isinstance(built, JointExtractor) and built.on_host
    images = photos(2, 48, 72)
    found = built.extract(images[:1])
    color = ColorTextureExtractor(token_budget=216).extract(images[:1])
    assert found.shape[1:3] == color.shape[1:3] == (12, 18)
    assert found.shape[3] == color.shape[3] + 24
    np.testing.assert_allclose(built.extract(images)[0], found[0], atol=1e-5)
    described = json.loads(json.dumps(built.describe()))
    assert described["coarse"]["facet"] == "value" and described["fine"]["name"] == "color_texture"

"""Feature extractors: values, grids, and selection by the config."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import timm
import torch
from fvcore.common.config import CfgNode
from PIL import Image
from timm.layers import Attention, AttentionRope
from timm.models.eva import EvaAttention
from torch.nn import functional as F

from sohes_d2.errors import WeightsError
from sohes_d2.exploration.features import (
    FEATURE_EXTRACTORS,
    ColorTextureExtractor,
    JointExtractor,
    build,
    build_feature_extractor,
    extractor_by_name,
)
from sohes_d2.exploration.features.cnn import CNNExtractor
from sohes_d2.exploration.features.network import run_until, to_input
from sohes_d2.exploration.features.vit import ViTExtractor, project


def config(**features) -> CfgNode:
    cfg = CfgNode()
    cfg.MODEL = CfgNode({"DEVICE": "cpu"})
    defaults = {
        "NAME": "auto",
        "WEIGHTS": "",
        "BLOCK": -1,
        "FACET": "key",
        "POSITIONS": "auto",
        "STRIDE": 8,
        "TOKEN_BUDGET": 48,
    }
    cfg.EXPLORATION = CfgNode({"FEATURES": CfgNode({**defaults, "DTYPE": "float32", **features})})
    cfg.freeze()
    return cfg


def photos(count: int = 1, height: int = 60, width: int = 90, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count)]


def vit(**options) -> ViTExtractor:
    return ViTExtractor("test_vit", **{"weights": "random", "token_budget": 48, **options})


@pytest.mark.parametrize(
    ("image", "budget", "grid"),
    [
        ((480, 480), 3600, (60, 60)),
        ((1080, 1920), 3600, (45, 80)),
        ((375, 500), 3600, (51, 69)),
        ((20000, 50), 3600, (1200, 3)),
        ((50, 20000), 3600, (3, 1200)),
        ((4, 100_000), 3600, (1, 3600)),
        ((1, 1), 3600, (1, 1)),
        ((3, 500), 3600, (3, 500)),
        ((480, 640), 1, (1, 1)),
    ],
)
def test_grid_keeps_the_aspect_within_the_budget(image, budget, grid):
    extractor = ColorTextureExtractor(token_budget=budget)
    assert extractor.grid_size(image) == grid


def test_the_budget_is_never_exceeded():
    rng = np.random.default_rng(0)
    for height, width, budget in rng.integers(1, 3000, (500, 3)):
        rows, cols = ColorTextureExtractor(token_budget=int(budget)).grid_size((int(height), int(width)))
        assert 1 <= rows <= height and 1 <= cols <= width and rows * cols <= budget


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


def test_resizing_is_that_of_pillow():
    [image] = photos(1, 97, 131)
    pixels = to_input([image], (64, 80), (0.0,) * 3, (1.0,) * 3, torch.device("cpu"))[0].permute(1, 2, 0).numpy() * 255
    expected = np.asarray(Image.fromarray(image).resize((80, 64), Image.BICUBIC), dtype=np.float32)
    assert np.abs(pixels - expected).max() < 1.01
    same = to_input([image], (97, 131), (0.5, 0.4, 0.3), (0.2, 0.25, 0.5), torch.device("cpu"))[0].permute(1, 2, 0)
    np.testing.assert_allclose(same.numpy(), (image / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.25, 0.5], atol=1e-5)


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


@pytest.mark.parametrize(
    ("name", "stride", "stage", "dims"),
    [("test_resnet", 8, "layer2", 48), ("test_resnet", 4, "layer1", 32), ("torchvision/resnet18", 8, "layer2", 128)],
)
def test_a_cnn_gives_the_map_of_a_stage(name, stride, stage, dims):
    extractor = CNNExtractor(name, weights="random", stride=stride, token_budget=200)
    images = photos(2, 100, 150)
    features = extractor.extract(images)
    with torch.inference_mode():
        size = (11 * stride, 17 * stride) if stride == 8 else (64, 68)
        x = to_input(images, size, extractor.mean, extractor.std, torch.device("cpu"))
        expected = run_until(extractor.model, getattr(extractor.model, stage), x)
        if expected.shape[2:] != (11, 17):
            expected = F.interpolate(expected, size=(11, 17), mode="bilinear", antialias=True)
    assert (extractor.stage, extractor.dims) == (stage, dims)
    assert np.array_equal(features, expected.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(features, extractor.extract(images))


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet", "torchvision/squeezenet1_1"])
def test_other_cnns_and_tiny_grids(name):
    extractor = CNNExtractor(name, weights="random", token_budget=200)
    assert extractor.extract(photos(1, 100, 150)).shape == (1, 11, 17, extractor.dims)
    assert extractor.extract_at(photos(1, 1, 1), (1, 1)).shape == (1, 1, 1, extractor.dims)


def test_cnn_errors():
    with pytest.raises(ValueError, match=r"no map of stride 5 .*it has \[.*8, 16"):
        CNNExtractor("test_resnet", weights="random", stride=5)
    with pytest.raises(ValueError, match="torchvision has no model"):
        CNNExtractor("torchvision/resnet51", weights="random")
    with pytest.raises(ValueError, match="any size"):
        CNNExtractor("swin_tiny_patch4_window7_224", weights="random")


def test_the_config_chooses_by_name():
    extractor = build_feature_extractor(config(NAME="test_vit", WEIGHTS="random", BLOCK=1, FACET="value"))
    assert isinstance(extractor, ViTExtractor)
    facts = extractor.describe()
    assert (facts["block"], facts["facet"], facts["weights"], facts["token_budget"]) == (1, "value", "random:0", 48)
    assert isinstance(build_feature_extractor(config(NAME="test_resnet", WEIGHTS="random", STRIDE=4)), CNNExtractor)
    assert isinstance(build_feature_extractor(config(NAME="color_texture")), ColorTextureExtractor)
    for wrong in ("vit_base_patch8_24.dino", "vit_base_patch8_224.dina"):
        with pytest.raises(ValueError, match="Did you mean .*vit_base_patch8_224.dino"):
            build_feature_extractor(config(NAME=wrong))


def test_users_can_register_extractors():
    @FEATURE_EXTRACTORS.register()
    def doubled_budget(cfg):
        return ColorTextureExtractor(token_budget=2 * cfg.EXPLORATION.FEATURES.TOKEN_BUDGET)

    try:
        assert build_feature_extractor(config(NAME="doubled_budget")).token_budget == 96
    finally:
        del FEATURE_EXTRACTORS._obj_map["doubled_budget"]


def test_auto_uses_the_vit_if_its_weights_are_given(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(build, "AUTO_MODEL", "test_vit.r160_in1k")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "w.pth")
    extractor = build_feature_extractor(config(WEIGHTS=str(tmp_path / "w.pth")))
    assert isinstance(extractor, ViTExtractor) and extractor.name == "test_vit.r160_in1k"
    assert extractor.describe()["weights"] == "file:w.pth"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_auto_falls_back_offline_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(build, "hub_cached_file", lambda name: None)
    monkeypatch.setattr(build, "hub_reachable", lambda name, timeout: False)
    assert isinstance(extractor_by_name("auto"), JointExtractor)
    assert [record.levelname for record in caplog.records if record.name == build.__name__] == ["WARNING"]


@pytest.mark.parametrize("name", ["joint", "vit_file", "test_vit", "test_resnet"])
def test_the_default_device_is_the_cpu_without_gpu(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = config(NAME=name, WEIGHTS="random" if name.startswith("test") else "")
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    cfg.freeze()
    assert build_feature_extractor(cfg).on_host
    assert cfg.MODEL.DEVICE == "cuda", "the user's config stays as it is"

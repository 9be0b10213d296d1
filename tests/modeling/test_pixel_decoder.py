import pytest
import torch
from helpers.golden import noise, summary

from sohes_d2 import add_sohes_config
from sohes_d2.modeling.pixel_decoder import PIXEL_DECODER_REGISTRY, MSDeformAttnPixelDecoder

from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec

SHAPES = {f"res{i + 2}": ShapeSpec(channels=c, stride=4 * 2**i) for i, c in enumerate((3, 4, 5, 6))}
TINY = {
    "conv_dim": 32,
    "mask_dim": 5,
    "transformer_nheads": 4,
    "transformer_dim_feedforward": 16,
    "transformer_enc_layers": 2,
}


def tiny_decoder():
    decoder = MSDeformAttnPixelDecoder(SHAPES, **TINY)
    with torch.no_grad():
        for seed, (_, parameter) in enumerate(sorted(decoder.named_parameters())):
            parameter.copy_(noise(*parameter.shape, seed=seed, scale=0.5))
    return decoder


def tiny_features(height=96, width=128):
    return {
        name: noise(2, shape.channels, height // shape.stride, width // shape.stride, seed=seed).float()
        for seed, (name, shape) in enumerate(SHAPES.items())
    }


def default_cfg():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = list(SHAPES)
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 256
    return cfg


def test_values_and_gradients_of_the_official_implementation():
    decoder = tiny_decoder()
    features = {name: each.requires_grad_() for name, each in tiny_features().items()}
    mask_features, encoded, multi_scale = decoder.forward_features(features)
    # Computed with Mask2Former's own MSDeformAttnPixelDecoder: sum, norm and four elements.
    expected = [
        (mask_features, (2, 5, 24, 32), [1217.884794, 57.877241, -0.206005, -0.172008, 0.461962, 0.245586]),
        (encoded, (2, 32, 3, 4), [8.362051, 10.913376, -0.202905, -0.653858, -0.190483, -0.161520]),
        (multi_scale[0], (2, 32, 3, 4), [8.362051, 10.913376, -0.202905, -0.653858, -0.190483, -0.161520]),
        (multi_scale[1], (2, 32, 6, 8), [31.936428, 21.794437, -0.216549, -0.663969, -0.211855, -0.178942]),
        (multi_scale[2], (2, 32, 12, 16), [103.034339, 43.342357, -0.204715, -0.659218, -0.196445, -0.195768]),
    ]
    assert len(multi_scale) == 3
    for tensor, shape, numbers in expected:
        assert tensor.shape == shape
        numbers = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(summary(tensor), numbers, atol=1e-4, rtol=1e-5)

    mask_features.square().sum().backward()
    gradients = [
        (features["res2"].grad, [39.623867, 0.375049, -0.664673, 1.140662, 0.399945]),
        (features["res5"].grad, [0.202031, -0.048837, 0.025318, -0.006156, 0.002846]),
        (decoder.transformer.level_embed.grad, [9.595355, -0.008128, -0.075785, -1.382582, 2.875360]),
        (
            decoder.transformer.encoder.layers[0].self_attn.sampling_offsets.bias.grad,
            [0.592750, 0.000785, 0.064485, -0.004054, 0.000551],
        ),
    ]
    for tensor, numbers in gradients:  # without the sum, which normalization makes zero
        numbers = torch.tensor(numbers, dtype=torch.float64)
        torch.testing.assert_close(summary(tensor)[1:], numbers, atol=1e-4, rtol=1e-4)


def test_parameters_have_the_names_and_shapes_of_published_checkpoints():
    resnet = {f"res{i + 2}": ShapeSpec(channels=256 * 2**i, stride=4 * 2**i) for i in range(4)}
    decoder = PIXEL_DECODER_REGISTRY.get("MSDeformAttnPixelDecoder")(default_cfg(), resnet)
    expected = {
        "mask_features.weight": (256, 256, 1, 1),
        "mask_features.bias": (256,),
        "adapter_1.weight": (256, 256, 1, 1),
        "layer_1.weight": (256, 256, 3, 3),
        "transformer.level_embed": (3, 256),
    }
    for name in ("adapter_1", "layer_1"):
        expected.update({f"{name}.norm.weight": (256,), f"{name}.norm.bias": (256,)})
    for level, channels in enumerate((2048, 1024, 512)):
        expected.update({f"input_proj.{level}.0.weight": (256, channels, 1, 1), f"input_proj.{level}.0.bias": (256,)})
        expected.update({f"input_proj.{level}.1.weight": (256,), f"input_proj.{level}.1.bias": (256,)})
    linear = {
        "self_attn.sampling_offsets": (192, 256),
        "self_attn.attention_weights": (96, 256),
        "self_attn.value_proj": (256, 256),
        "self_attn.output_proj": (256, 256),
        "linear1": (1024, 256),
        "linear2": (256, 1024),
        "norm1": (256,),
        "norm2": (256,),
    }
    for layer in range(6):
        for name, shape in linear.items():
            prefix = f"transformer.encoder.layers.{layer}.{name}"
            expected.update({f"{prefix}.weight": shape, f"{prefix}.bias": shape[:1]})
    assert {name: tuple(each.shape) for name, each in decoder.state_dict().items()} == expected


def test_config_reaches_the_module():
    cfg = default_cfg()
    head = cfg.MODEL.SEM_SEG_HEAD
    head.CONVS_DIM = 64
    head.MASK_DIM = 48
    head.NORM = ""
    head.TRANSFORMER_ENC_LAYERS = 1
    head.ENC_DIM_FEEDFORWARD = 24
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_HEADS = 2
    head.DEFORMABLE_TRANSFORMER_ENCODER_N_POINTS = 3
    decoder = MSDeformAttnPixelDecoder(cfg, SHAPES)
    shapes = {name: tuple(each.shape) for name, each in decoder.state_dict().items()}
    assert shapes["mask_features.weight"] == (48, 64, 1, 1)
    assert shapes["adapter_1.bias"] == (64,)
    assert shapes["transformer.encoder.layers.0.linear1.weight"] == (24, 64)
    assert shapes["transformer.encoder.layers.0.self_attn.attention_weights.weight"] == (2 * 3 * 3, 64)
    assert "transformer.encoder.layers.1.linear1.weight" not in shapes


@pytest.mark.parametrize(
    "stride, in_features, adapters",
    [
        (4, ["res4", "res5"], {"adapter_1", "adapter_2"}),
        (4, ["res2", "res3", "res4", "res5"], set()),
        (8, ["res3", "res4", "res5"], set()),
    ],
)
def test_the_pyramid_goes_down_to_the_common_stride(stride, in_features, adapters):
    decoder = MSDeformAttnPixelDecoder(SHAPES, **TINY, transformer_in_features=in_features, common_stride=stride)
    mask_features, _, multi_scale = decoder.forward_features(tiny_features())
    assert {name for name, _ in decoder.named_children() if name.startswith("adapter_")} == adapters
    assert mask_features.shape == (2, 5, 96 // stride, 128 // stride)
    assert [tuple(each.shape[-2:]) for each in multi_scale] == [(3, 4), (6, 8), (12, 16)]


def test_odd_sizes():
    features = {
        name: noise(1, shape.channels, -(-50 // shape.stride), -(-70 // shape.stride)).float()
        for name, shape in SHAPES.items()
    }
    mask_features, _, _ = tiny_decoder().forward_features(features)
    assert mask_features.shape == (1, 5, 13, 18)
    assert mask_features.isfinite().all()


def test_autocast_changes_nothing():
    decoder, features = tiny_decoder(), tiny_features()
    expected, _, _ = decoder.forward_features(features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mask_features, _, _ = decoder.forward_features(features)
    assert mask_features.dtype == torch.float32
    torch.testing.assert_close(mask_features, expected)


def test_maps_that_do_not_reach_the_common_stride_are_refused():
    coarse = {name: SHAPES[name] for name in ("res3", "res4", "res5")}
    with pytest.raises(ValueError, match=r"maps of strides \[4\] are needed"):
        MSDeformAttnPixelDecoder(coarse, **TINY)
    with pytest.raises(ValueError, match=r"\['res6'\] are not among"):
        MSDeformAttnPixelDecoder(SHAPES, **TINY, transformer_in_features=["res5", "res6"])

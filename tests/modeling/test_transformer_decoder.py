import logging
import math

import pytest
import torch

from sohes_d2 import add_sohes_config
from sohes_d2.modeling import transformer_decoder
from sohes_d2.modeling.ancestor_head import AncestorHead, ancestor_logits
from sohes_d2.modeling.transformer_decoder import (
    MultiScaleMaskedTransformerDecoder,
    build_transformer_decoder,
)

from detectron2.config import get_cfg

SIZES = [(2, 3), (4, 6), (8, 12)]  # of the feature maps; the mask features are (16, 24)


def build(in_channels=16, **changes):
    settings = {
        "num_classes": 1,
        "hidden_dim": 16,
        "num_queries": 6,
        "nheads": 4,
        "dim_feedforward": 24,
        "dec_layers": 4,  # the last one uses the first map again
        "pre_norm": False,
        "mask_dim": 8,
        "enforce_input_project": False,
    }
    return MultiScaleMaskedTransformerDecoder(in_channels, **{**settings, **changes})


def wave(shape, phase, scale=1.0):
    """Deterministic numbers in [-scale, scale]: scale * sin(0.1234 n^2 + phase), n = 1, ..."""
    n = torch.arange(1, 1 + math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(0.1234 * n * n + phase)).reshape(shape).float()


@torch.no_grad()
def fill(module, phase):
    """Set parameters to waves: phase + k for the k-th by name; matrices scaled by fan-in; norms around 1."""
    for k, (name, parameter) in enumerate(sorted(module.named_parameters())):
        is_embedding = "query" in name or "level_embed" in name
        if parameter.dim() == 1:
            scale = 0.2
        else:
            scale = 1.0 if is_embedding else 2 / math.sqrt(parameter.shape[1])
        parameter.copy_(wave(parameter.shape, phase + k, scale) + ("norm" in name and name.endswith("weight")))


def make_inputs(phase, in_channels=16):
    features = [wave((2, in_channels, *size), phase + 0.3 + i) for i, size in enumerate(SIZES)]
    coarse = wave((2, 8, 3, 4), phase + 0.7)  # smooth in space, as masks are
    mask_features = torch.nn.functional.interpolate(coarse, size=(16, 24), mode="bilinear", align_corners=False)
    return features, mask_features


def digest(tensor):
    """Mean, norm and four elements."""
    flat = tensor.detach().double().flatten()
    return [flat.mean().item(), flat.norm().item(), *flat[[0, len(flat) // 3, len(flat) // 2, -1]].tolist()]


# Computed by the official module (facebookresearch/Mask2Former at 9b0651c), with these parameters and inputs, on a CPU.
# aux_1 is after the first layer, aux_3 after the third. In the first masks, 2 rows (post) and 1 row (pre) are empty.
OFFICIAL = {
    "post_norm": {
        "settings": {"in_channels": 16},
        "phase": 30,
        "pred_logits": [1.582391, 10.186295, 3.410693, 3.412275, 2.351647, -0.035271],
        "pred_masks": [-0.714188, 110.777432, -1.123657, -1.116874, -1.203176, -5.875945],
        "aux_0_logits": [-0.35776, 6.191746, 1.339801, 0.398086, 1.339801, -1.515964],
        "aux_0_masks": [-0.653517, 247.337311, -6.600949, 2.122027, 9.091254, -5.945372],
        "aux_1_logits": [-0.849338, 4.813146, -0.979936, -0.455735, 0.251948, -1.076394],
        "aux_1_masks": [-1.055874, 185.342721, 0.543255, -0.147209, 2.232563, -7.456518],
        "aux_3_logits": [-0.239627, 5.394744, 0.928519, 0.9434, 0.759985, -1.335486],
        "aux_3_masks": [-1.720058, 253.880493, -2.013436, -2.017668, 0.200141, -8.628773],
        "empty_rows": 2,
    },
    "pre_norm_and_projected": {
        "settings": {"in_channels": 12, "pre_norm": True, "enforce_input_project": True},
        "phase": 112,
        "pred_logits": [0.598421, 4.630366, 1.818298, 1.769686, 1.149852, 0.407343],
        "pred_masks": [-0.959149, 196.95768, -0.787359, 0.252669, 1.519395, -6.7497],
        "aux_0_logits": [-0.716958, 6.849284, -0.306125, -0.20926, -0.306125, -1.401463],
        "aux_0_masks": [-0.610718, 245.54572, -9.66337, 3.562373, 7.334531, -8.275821],
        "aux_1_logits": [0.651986, 4.812785, 2.036395, 2.032447, 1.520188, 0.63154],
        "aux_1_masks": [-0.634414, 159.062292, -0.434878, -0.292399, 2.661593, -5.196621],
        "aux_3_logits": [0.336319, 5.016004, 2.066932, 1.991127, 0.826218, 0.394562],
        "aux_3_masks": [-0.845679, 189.078301, -0.383274, 1.260231, 2.39196, -5.988795],
        "empty_rows": 1,
    },
}


@pytest.mark.parametrize("case", OFFICIAL)
def test_numbers_of_the_official_implementation(case, monkeypatch):
    expected = OFFICIAL[case]
    settings = expected["settings"]
    decoder = build(**settings)
    fill(decoder, expected["phase"])

    masks, empty_rows = [], []
    original = transformer_decoder.foreground

    def spy(mask_embed, mask_features):
        masks.append(original(mask_embed, mask_features))
        empty_rows.append((mask_embed @ mask_features < 0).all(-1).sum().item())
        return masks[-1]

    monkeypatch.setattr(transformer_decoder, "foreground", spy)
    outputs = decoder(*make_inputs(expected["phase"], settings["in_channels"]))

    assert len(outputs["aux_outputs"]) == 4
    assert digest(outputs["pred_logits"]) == pytest.approx(expected["pred_logits"], abs=1e-4)
    assert digest(outputs["pred_masks"]) == pytest.approx(expected["pred_masks"], abs=1e-4)
    for layer in (0, 1, 3):
        aux = outputs["aux_outputs"][layer]
        assert digest(aux["pred_logits"]) == pytest.approx(expected[f"aux_{layer}_logits"], abs=1e-4)
        assert digest(aux["pred_masks"]) == pytest.approx(expected[f"aux_{layer}_masks"], abs=1e-4)

    # The case covers what it should: masks are partial in every layer, maps alternate, and some rows were empty.
    assert [mask.shape for mask in masks] == [(2, 1, 6, h * w) for h, w in [*SIZES, SIZES[0]]]
    assert all(0.1 < mask.float().mean() < 0.9 for mask in masks)
    assert empty_rows[0] == expected["empty_rows"]


def test_parameters_have_the_official_names_and_shapes():
    shapes = {name: tuple(value.shape) for name, value in build(12, num_classes=80, dec_layers=2).state_dict().items()}
    expected = {
        "query_feat.weight": (6, 16),
        "query_embed.weight": (6, 16),
        "level_embed.weight": (3, 16),
        "decoder_norm.weight": (16,),
        "decoder_norm.bias": (16,),
        "class_embed.weight": (81, 16),
        "class_embed.bias": (81,),
    }
    for i in range(3):
        expected.update({f"input_proj.{i}.weight": (16, 12, 1, 1), f"input_proj.{i}.bias": (16,)})
        out = 8 if i == 2 else 16
        expected.update({f"mask_embed.layers.{i}.weight": (out, 16), f"mask_embed.layers.{i}.bias": (out,)})
    for i in range(2):
        for attention in ("cross_attention_layers.{}.multihead_attn", "self_attention_layers.{}.self_attn"):
            prefix = f"transformer_{attention.format(i)}"
            expected.update({f"{prefix}.in_proj_weight": (48, 16), f"{prefix}.in_proj_bias": (48,)})
            expected.update({f"{prefix}.out_proj.weight": (16, 16), f"{prefix}.out_proj.bias": (16,)})
        prefix = f"transformer_ffn_layers.{i}"
        expected.update({f"{prefix}.linear1.weight": (24, 16), f"{prefix}.linear1.bias": (24,)})
        expected.update({f"{prefix}.linear2.weight": (16, 24), f"{prefix}.linear2.bias": (16,)})
        for part in ("cross_attention", "self_attention", "ffn"):
            prefix = f"transformer_{part}_layers.{i}.norm"
            expected.update({f"{prefix}.weight": (16,), f"{prefix}.bias": (16,)})
    assert shapes == expected
    assert not any(name.startswith("input_proj") for name in build(16).state_dict())


def test_foreground_is_the_queries_mask_or_everything():
    mask_features = torch.tensor([[[1.0, -1.0, 2.0], [0.0, 1.0, 1.0]]])  # 1 image, 2 channels, 3 pixels
    mask_embed = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [-1.0, -3.0]]], requires_grad=True)
    allowed = transformer_decoder.foreground(mask_embed, mask_features)
    assert allowed.tolist() == [[[[True, False, True], [False, True, False], [True, True, True]]]]
    assert not allowed.requires_grad


def test_a_logit_of_zero_is_foreground():
    allowed = transformer_decoder.foreground(torch.ones(1, 1, 1), torch.tensor([[[0.0, -1.0]]]))
    assert allowed.tolist() == [[[[True, False]]]]  # sigmoid(0) is not below 0.5


@pytest.mark.parametrize("why", ["evaluation", "no deep supervision"])
def test_no_auxiliary_outputs_and_the_same_last_one(why):
    decoder = build(ancestor_head=AncestorHead(16, 4))
    fill(decoder, 1)
    inputs = make_inputs(1)
    full = decoder(*inputs)
    assert len(full["aux_outputs"]) == 4
    if why == "evaluation":
        decoder.eval()
    else:
        decoder.deep_supervision = False
    last = decoder(*inputs)
    assert last["aux_outputs"] == []
    assert torch.equal(last["pred_logits"], full["pred_logits"])
    assert torch.equal(last["pred_masks"], full["pred_masks"])
    assert torch.equal(last["pred_ancestors"][0], full["pred_ancestors"][0])


def test_ancestors_are_predicted_from_normalised_queries_at_every_layer():
    decoder = build(ancestor_head=AncestorHead(16, 4))
    fill(decoder, 2)
    normed = []
    decoder.decoder_norm.register_forward_hook(lambda module, args, output: normed.append(output))
    outputs = decoder(*make_inputs(2))
    all_outputs = [*outputs["aux_outputs"], outputs]
    assert len(normed) == len(all_outputs) == 5
    for queries, predictions in zip(normed, all_outputs):
        logits = ancestor_logits(*predictions["pred_ancestors"])
        assert logits.shape == (2, 6, 6)
        torch.testing.assert_close(logits, ancestor_logits(*decoder.ancestor_head(queries)))
    assert "pred_ancestors" not in build()(*make_inputs(2))


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_gradients_reach_all_parameters(pre_norm, deep_supervision):
    decoder = build(12, pre_norm=pre_norm, deep_supervision=deep_supervision, ancestor_head=AncestorHead(16, 4))
    fill(decoder, 3)
    features, mask_features = make_inputs(3, in_channels=12)
    for tensor in (*features, mask_features):
        tensor.requires_grad_()
    outputs = decoder(features, mask_features)
    loss = 0
    for predictions in [outputs, *outputs["aux_outputs"]]:
        loss = loss + predictions["pred_logits"].sin().sum() + predictions["pred_masks"].sigmoid().sum()
        loss = loss + ancestor_logits(*predictions["pred_ancestors"]).sigmoid().sum()
    loss.backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    assert all(tensor.grad.abs().max() > 0 for tensor in (*features, mask_features))


def test_bfloat16_autocast():
    decoder = build(ancestor_head=AncestorHead(16, 4))
    fill(decoder, 4)
    inputs = make_inputs(4)
    exact = decoder(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = decoder(*inputs)
        loss = outputs["pred_masks"].float().sigmoid().sum() + outputs["pred_logits"].float().sin().sum()
    assert outputs["pred_masks"].dtype == torch.bfloat16
    assert outputs["pred_ancestors"][0].dtype == torch.float32
    # The first predictions do not depend on masks, so they are close; in later ones, mask pixels may flip.
    first, exact_first = outputs["aux_outputs"][0], exact["aux_outputs"][0]
    torch.testing.assert_close(first["pred_masks"].float(), exact_first["pred_masks"], atol=0.2, rtol=0.05)
    torch.testing.assert_close(first["pred_logits"].float(), exact_first["pred_logits"], atol=0.05, rtol=0.05)
    assert torch.isfinite(loss)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in decoder.parameters() if p.grad is not None)


def test_feature_maps_must_be_three():
    features, mask_features = make_inputs(0)
    with pytest.raises(ValueError, match="expected 3 feature maps"):
        build()(features[:2], mask_features)


def test_official_checkpoints_of_the_first_format_load():
    decoder, weights = build(), build().state_dict()
    weights["static_query.weight"] = weights.pop("query_feat.weight") + 1
    expected = weights["static_query.weight"].clone()
    decoder.load_state_dict(weights, strict=True)
    assert torch.equal(decoder.query_feat.weight, expected)


def test_queries_of_another_number_are_skipped(caplog):
    decoder = torch.nn.ModuleDict({"predictor": build()})
    before = decoder["predictor"].query_feat.weight.clone()
    with caplog.at_level(logging.WARNING):
        result = decoder.load_state_dict({"predictor.static_query.weight": torch.zeros(9, 16)}, strict=False)
    assert "predictor.query_feat.weight" in result.missing_keys
    assert "predictor.static_query.weight" in result.unexpected_keys
    assert torch.equal(decoder["predictor"].query_feat.weight, before)
    assert "(9, 16)" in caplog.text


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 1
    cfg.MODEL.SEM_SEG_HEAD.MASK_DIM = 8
    former = cfg.MODEL.MASK_FORMER
    former.HIDDEN_DIM, former.NHEADS, former.DIM_FEEDFORWARD, former.NUM_OBJECT_QUERIES = 16, 4, 24, 7
    former.DEC_LAYERS = 4
    cfg.MODEL.ANCESTOR_HEAD.DIM = 5
    return cfg


def test_built_from_the_config(cfg):
    decoder = build_transformer_decoder(cfg, 12)
    assert isinstance(decoder, MultiScaleMaskedTransformerDecoder)
    outputs = decoder(*make_inputs(0, in_channels=12))
    assert len(decoder.transformer_ffn_layers) == len(outputs["aux_outputs"]) == 3
    assert outputs["pred_logits"].shape == (2, 7, 2)
    assert outputs["pred_masks"].shape == (2, 7, 16, 24)
    assert [side.shape for side in outputs["pred_ancestors"]] == [(2, 7, 6), (2, 7, 6)]
    assert all(set(aux) == {"pred_logits", "pred_masks", "pred_ancestors"} for aux in outputs["aux_outputs"])


def test_config_switches(cfg):
    cfg.MODEL.ANCESTOR_HEAD.ENABLED = False
    cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = False
    cfg.MODEL.MASK_FORMER.PRE_NORM = True
    cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = True
    decoder = build_transformer_decoder(cfg, 16)
    assert decoder.ancestor_head is None and not decoder.deep_supervision
    assert decoder.transformer_ffn_layers[0].pre_norm
    assert decoder.input_proj[0].weight.shape == (16, 16, 1, 1)


def test_too_few_layers_in_the_config(cfg):
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 1
    with pytest.raises(ValueError, match="MODEL.MASK_FORMER.DEC_LAYERS is 1, but must be at least 2"):
        build_transformer_decoder(cfg, 16)

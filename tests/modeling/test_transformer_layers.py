import math

import pytest
import torch

from sohes_d2.modeling.transformer_layers import (
    MLP,
    FFNLayer,
    MultiheadAttention,
    PositionEmbeddingSine,
    ResidualLayer,
)


def test_position_channels_are_sine_and_cosine_of_y_then_of_x():
    encoding = PositionEmbeddingSine(4)(torch.zeros(1, 7, 2, 5))[0]
    assert encoding.shape == (8, 2, 5)
    row, col = 1, 2
    y, x = 2 * math.pi * 2 / 2, 2 * math.pi * 3 / 5  # cells count from 1, and the last one is at 2 pi
    expected = [f(v / s) for v in (y, x) for s in (1.0, 100.0) for f in (math.sin, math.cos)]
    torch.testing.assert_close(encoding[:, row, col], torch.tensor(expected), atol=1e-5, rtol=0)


def test_positions_of_the_official_implementation():
    encoding = PositionEmbeddingSine(2)(torch.zeros(2, 1, 2, 3))
    # computed with Mask2Former's position_encoding.py, for rows and columns of a 2 x 3 map
    y_sine, y_cosine = [0.0, 0.0], [-1.0, 1.0]
    x_sine, x_cosine = [0.866026, -0.866025, 0.0], [-0.499999, -0.500001, 1.0]
    assert encoding.shape == (1, 4, 2, 3)
    torch.testing.assert_close(encoding[0, :2, :, 1], torch.tensor([y_sine, y_cosine]), atol=1e-5, rtol=0)
    torch.testing.assert_close(encoding[0, 2:, 1], torch.tensor([x_sine, x_cosine]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, expected", [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_maps_get_float32_positions(dtype, expected):
    assert PositionEmbeddingSine(2)(torch.zeros(1, 3, 4, 5, dtype=dtype)).dtype == expected


def test_odd_position_channels_are_refused():
    with pytest.raises(ValueError, match="even"):
        PositionEmbeddingSine(5)


def test_positions_have_no_state():
    assert not PositionEmbeddingSine(6).state_dict()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_has_the_parameters_and_outputs_of_pytorch(masked):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(12, 3), torch.nn.MultiheadAttention(12, 3, batch_first=True)
    torch.nn.init.normal_(theirs.in_proj_bias)
    torch.nn.init.normal_(theirs.out_proj.bias)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    query, key, value = torch.randn(2, 5, 12), torch.randn(2, 7, 12), torch.randn(2, 7, 12)
    allowed = blocked = None
    if masked:
        allowed = torch.rand(2, 1, 5, 7) > 0.5
        allowed[..., 0] = True
        blocked = ~allowed.expand(2, 3, 5, 7).reshape(6, 5, 7)
    expected, _ = theirs(query, key, value, attn_mask=blocked, need_weights=False)
    torch.testing.assert_close(ours(query, key, value, allowed), expected, atol=1e-5, rtol=1e-5)


def test_a_query_attends_only_where_allowed():
    torch.manual_seed(0)
    attention = MultiheadAttention(8, 2)
    query, features = torch.randn(1, 2, 8), torch.randn(1, 4, 8)
    allowed = torch.tensor([[True, True, False, False], [False, False, True, True]])[None, None]
    before = attention(query, features, features, allowed)
    features[:, 2:] += 1
    after = attention(query, features, features, allowed)
    assert torch.equal(before[:, 0], after[:, 0])
    assert (before[:, 1] - after[:, 1]).abs().max() > 1e-3


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="MODEL.MASK_FORMER.NHEADS"):
        MultiheadAttention(10, 4)


class Triple(ResidualLayer):
    def update(self, x, offset):
        return 2 * x + offset


@pytest.mark.parametrize("pre_norm", [False, True])
def test_position_of_the_norm(pre_norm):
    layer = Triple(4, pre_norm)
    x = torch.tensor([[[1.0, 2.0, 3.0, 6.0]]])
    norm = torch.nn.functional.layer_norm
    offset = torch.tensor([1.0, 0.0, 0.0, 0.0])
    expected = x + 2 * norm(x, (4,)) + offset if pre_norm else norm(3 * x + offset, (4,))
    torch.testing.assert_close(layer(x, offset), expected)


def test_initial_weights():
    torch.manual_seed(0)
    attention, ffn = MultiheadAttention(16, 2), FFNLayer(16, 32)
    for weight, fans in (
        (attention.in_proj_weight, 16 + 48),  # the packed projections are initialised as one matrix
        (attention.out_proj.weight, 16 + 16),
        (ffn.linear1.weight, 16 + 32),
        (ffn.linear2.weight, 32 + 16),
    ):
        bound = math.sqrt(6 / fans)
        assert 0.95 * bound < weight.abs().max() <= bound
    assert attention.in_proj_bias.abs().max() == attention.out_proj.bias.abs().max() == 0


def test_mlp_has_no_relu_at_the_end():
    mlp = MLP(1, 1, 1)
    with torch.no_grad():
        for layer, weight in zip(mlp.layers, (2.0, -3.0)):
            layer.weight.fill_(weight)
            layer.bias.zero_()
    assert mlp(torch.tensor([[1.0], [-1.0]])).tolist() == [[-6.0], [0.0]]

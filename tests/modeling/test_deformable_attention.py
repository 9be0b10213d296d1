import math

import pytest
import torch
from helpers.golden import noise, summary

from sohes_d2.modeling.deformable_attention import MSDeformAttn, cell_centers, multi_scale_deformable_attention

SHAPES = [(5, 7), (3, 4)]
CELLS = 5 * 7 + 3 * 4
METHODS = pytest.mark.parametrize("method", ["auto", "grid", "rows", "gather"])


def sample_slowly(value, spatial_shapes, locations, weights):
    """Deformable DETR's equation 3 without its projections, cell by cell."""
    batch, _, heads, channels = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, channels)
    for b, q, m, level, p in torch.cartesian_prod(*(torch.arange(n) for n in weights.shape)).tolist():
        start = sum(h * w for h, w in spatial_shapes[:level])
        height, width = spatial_shapes[level]
        x, y = (locations[b, q, m, level, p] * torch.tensor([width, height]) - 0.5).tolist()
        for row in (math.floor(y), math.floor(y) + 1):
            for col in (math.floor(x), math.floor(x) + 1):
                if 0 <= row < height and 0 <= col < width:
                    bilinear = (1 - abs(y - row)) * (1 - abs(x - col))
                    output[b, q, m] += weights[b, q, m, level, p] * bilinear * value[b, start + row * width + col, m]
    return output.flatten(2)


def sampling_inputs(queries=4, heads=3, channels=2, points=2):
    value = noise(2, CELLS, heads, channels, seed=1)
    locations = 0.5 + noise(2, queries, heads, 2, points, 2, seed=2, scale=0.7)  # some are outside of the maps
    weights = noise(2, queries, heads, 2, points, seed=3)
    return value, locations, weights


def attention_inputs(dtype=torch.float64):
    module = MSDeformAttn(16, n_levels=2, n_heads=4, n_points=3).to(dtype)
    with torch.no_grad():
        for seed, (_, parameter) in enumerate(sorted(module.named_parameters())):
            parameter.copy_(noise(*parameter.shape, seed=seed, scale=0.5))
    query = noise(2, 6, 16, seed=1).to(dtype).requires_grad_()
    reference = (0.5 + noise(2, 6, 2, 2, seed=2, scale=0.55)).to(dtype)
    cells = noise(2, CELLS, 16, seed=3).to(dtype).requires_grad_()
    return module, query, reference, cells


@METHODS
def test_sampling_is_a_weighted_sum_of_bilinear_values(method):
    value, locations, weights = sampling_inputs()
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, method)
    torch.testing.assert_close(output, sample_slowly(value, SHAPES, locations, weights))


@METHODS
def test_sampling_at_a_cell_centre_gives_that_cell(method):
    value, _, _ = sampling_inputs(heads=1)
    locations = torch.tensor([(2 + 0.5) / 4, (1 + 0.5) / 3]).double().expand(2, 1, 1, 2, 1, 2)
    weights = torch.tensor([0.0, 1.0]).double().view(1, 1, 1, 2, 1).expand(2, 1, 1, 2, 1)
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, method)
    torch.testing.assert_close(output[:, 0], value[:, 35 + 1 * 4 + 2, 0])


@METHODS
def test_sampling_far_outside_gives_zero(method):
    value, locations, weights = sampling_inputs()
    far = (locations - 0.5).sign() * 1e6
    assert not multi_scale_deformable_attention(value, SHAPES, far, weights, method).any()


@METHODS
def test_gradients_of_the_sampling(method):
    inputs = [each.requires_grad_() for each in sampling_inputs(queries=2, heads=1)]
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: multi_scale_deformable_attention(value, SHAPES, locations, weights, method),
        inputs,
    )


@pytest.mark.parametrize("needs_grad", [(True, False, False), (False, True, False), (False, False, True)])
def test_gradients_of_some_inputs_only(needs_grad):
    gradients = []
    for method in ("grid", "rows"):
        inputs = [each.requires_grad_(needed) for each, needed in zip(sampling_inputs(), needs_grad)]
        value, locations, weights = inputs
        output = multi_scale_deformable_attention(value, SHAPES, locations, weights, method)
        (output * noise(*output.shape, seed=5)).sum().backward()
        assert [each.grad is not None for each in inputs] == list(needs_grad)
        gradients.append(inputs[needs_grad.index(True)].grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_gradients_of_a_single_sample():
    gradients = []
    for method in ("grid", "rows", "gather"):
        value = noise(1, 12, 1, 2, seed=1).requires_grad_()
        locations = torch.tensor([0.3, 0.6]).double().view(1, 1, 1, 1, 1, 2).requires_grad_()
        weights = torch.full((1, 1, 1, 1, 1), 0.7).double().requires_grad_()
        multi_scale_deformable_attention(value, [(3, 4)], locations, weights, method).sum().backward()
        gradients.append([value.grad, locations.grad, weights.grad])
        assert gradients[-1][1].any()
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_gradients_of_the_module():
    module, query, reference, cells = attention_inputs()
    inputs = (query.detach()[:1, :1].requires_grad_(), cells.detach()[1:].requires_grad_())
    assert torch.autograd.gradcheck(
        lambda query, cells: module(query, reference[:1, :1], cells, SHAPES), inputs, fast_mode=True
    )


# Computed with Mask2Former's MSDeformAttn: sum, norm and four elements of the output, and of the gradients of the
# sum of the output's squares.
OFFICIAL = {
    "output": [10.836957, 5.318071, 0.109735, 0.099493, 0.711290, -0.155444],
    "query": [24.565275, 16.415858, 0.339759, -0.746093, -0.604920, -0.107757],
    "cells": [-60.891843, 9.905194, 0.0, 0.0, -0.014555, -1.182151],
    "offsets": [13.237165, 17.796206, 1.971039, 0.342081, 0.581216, 0.865726],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_and_gradients_of_the_official_implementation(dtype):
    module, query, reference, cells = attention_inputs(dtype)
    output = module(query, reference, cells, SHAPES)
    output.square().sum().backward()
    found = {
        "output": output,
        "query": query.grad,
        "cells": cells.grad,
        "offsets": module.sampling_offsets.bias.grad,
    }
    for name, expected in OFFICIAL.items():
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(
            summary(found[name]), expected, atol=1e-4, rtol=1e-5, msg=lambda m, n=name: f"{n} {m}"
        )


def test_reference_points_may_be_shared():
    module, query, reference, cells = attention_inputs()
    shared = reference[:1, :, :1]
    repeated = shared.expand(2, -1, 2, -1)
    torch.testing.assert_close(
        module(query, shared, cells, SHAPES), module(query, repeated.contiguous(), cells, SHAPES), atol=0, rtol=0
    )


def test_initial_offsets_are_a_ring():
    module = MSDeformAttn(16, n_levels=2, n_heads=8, n_points=3)
    ring = module.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    for head, (x, y) in enumerate(directions):
        for level in range(2):
            expected = torch.tensor([[x * k, y * k] for k in (1.0, 2.0, 3.0)])
            torch.testing.assert_close(ring[head, level], expected, atol=1e-5, rtol=0)
    zeros = (module.sampling_offsets.weight, module.attention_weights.weight, module.attention_weights.bias)
    assert not any(parameter.any() for parameter in zeros)
    limit = math.sqrt(6 / 32)
    assert 0.9 * limit < module.value_proj.weight.abs().max() <= limit


def test_parameters_have_the_names_of_checkpoints():
    shapes = {name: tuple(each.shape) for name, each in MSDeformAttn(192, 1, 12, 4, ratio=0.5).state_dict().items()}
    assert shapes == {
        "sampling_offsets.weight": (96, 192),
        "sampling_offsets.bias": (96,),
        "attention_weights.weight": (48, 192),
        "attention_weights.bias": (48,),
        "value_proj.weight": (96, 192),
        "value_proj.bias": (96,),
        "output_proj.weight": (192, 96),
        "output_proj.bias": (192,),
    }


def test_autocast_samples_in_float32():
    module, query, reference, cells = attention_inputs(torch.float32)
    expected = module(query, reference, cells, SHAPES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(query, reference, cells, SHAPES)
    output.float().square().sum().backward()
    torch.testing.assert_close(output.float(), expected, atol=0.05, rtol=0.05)
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_nan_values_are_propagated():
    value, locations, weights = sampling_inputs()
    locations[0, 0, 0, 0, 0, 0] = math.nan
    output = multi_scale_deformable_attention(value, SHAPES, locations, weights, "rows")
    expected = torch.zeros(2, 4, 6, dtype=torch.bool)
    expected[0, 0, :2] = True  # the channels of query 0, head 0
    assert torch.equal(output.isnan(), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"input_spatial_shapes": [(5, 7)]}, "1 spatial shapes for 2 levels"),
        ({"input_spatial_shapes": [(5, 7), (3, 5)]}, "do not add up to 47"),
        ({"reference_points": torch.zeros(2, 6, 2, 4)}, "Reference points must be"),
    ],
)
def test_inconsistent_inputs_are_refused(changes, message):
    module, query, reference, cells = attention_inputs()
    inputs = {"query": query, "reference_points": reference, "input_flatten": cells, "input_spatial_shapes": SHAPES}
    with pytest.raises(ValueError, match=message):
        module(**{**inputs, **changes})


def test_channels_that_do_not_split_into_heads_are_refused():
    with pytest.raises(ValueError, match="15 value channels"):
        MSDeformAttn(30, n_heads=4, ratio=0.5)


def test_cell_centers_are_x_y_row_by_row():
    points = cell_centers((2, 4), torch.empty(0, dtype=torch.float64))
    assert points.dtype == torch.float64
    assert points.tolist() == [[x, y] for y in (0.25, 0.75) for x in (0.125, 0.375, 0.625, 0.875)]

import math

import pytest
import torch

from sohes_d2.modeling.position_encoding import PositionEmbeddingSine


def test_channels_are_sine_and_cosine_of_y_then_of_x():
    encoding = PositionEmbeddingSine(4, temperature=100.0)(torch.zeros(1, 7, 2, 5))[0]
    assert encoding.shape == (8, 2, 5)
    row, col = 1, 2
    y, x = 2 * math.pi * 2 / 2, 2 * math.pi * 3 / 5  # cells count from 1, and the last one is at 2 pi
    expected = [f(v / s) for v in (y, x) for s in (1.0, 10.0) for f in (math.sin, math.cos)]
    torch.testing.assert_close(encoding[:, row, col], torch.tensor(expected), atol=1e-5, rtol=0)


def test_values_of_the_official_implementation():
    encoding = PositionEmbeddingSine(2)(torch.zeros(2, 1, 2, 3))
    # computed with Mask2Former's position_encoding.py, for rows and columns of a 2 x 3 map
    y_sine, y_cosine = [0.0, 0.0], [-1.0, 1.0]
    x_sine, x_cosine = [0.866026, -0.866025, 0.0], [-0.499999, -0.500001, 1.0]
    assert encoding.shape == (2, 4, 2, 3)
    for image in encoding:
        torch.testing.assert_close(image[:2, :, 1], torch.tensor([y_sine, y_cosine]), atol=1e-5, rtol=0)
        torch.testing.assert_close(image[2:, 1], torch.tensor([x_sine, x_cosine]), atol=1e-5, rtol=0)


def test_padding_does_not_change_the_positions_of_the_image():
    layer = PositionEmbeddingSine(6)
    alone = layer(torch.zeros(1, 3, 4, 5))
    mask = torch.ones(2, 6, 8, dtype=torch.bool)
    mask[0] = False
    mask[1, :4, :5] = False
    padded = layer(torch.zeros(2, 3, 6, 8), mask)
    torch.testing.assert_close(padded[1, :, :4, :5], alone[0])
    torch.testing.assert_close(padded[0], layer(torch.zeros(1, 3, 6, 8))[0])
    assert not torch.allclose(padded[0, :, :4, :5], alone[0])


def test_positions_in_cells_do_not_depend_on_the_size():
    layer = PositionEmbeddingSine(6, normalize=False)
    torch.testing.assert_close(layer(torch.zeros(1, 3, 4, 5)), layer(torch.zeros(1, 3, 9, 9))[:, :, :4, :5])


@pytest.mark.parametrize("dtype, expected", [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_maps_get_float32_positions(dtype, expected):
    assert PositionEmbeddingSine(2)(torch.zeros(1, 3, 4, 5, dtype=dtype)).dtype == expected


def test_odd_channels_are_refused():
    with pytest.raises(ValueError, match="even"):
        PositionEmbeddingSine(5)


def test_it_has_no_state():
    assert not PositionEmbeddingSine(6).state_dict()

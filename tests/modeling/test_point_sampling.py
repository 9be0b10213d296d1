"""Point sampling, and uncertain points."""

import pytest
import torch
from torch.nn import functional as F

from sohes_d2.modeling import point_sampling
from sohes_d2.modeling.point_sampling import random_points, sample_points, uncertain_points


def test_values_by_hand():
    maps = torch.tensor([[[0.0, 4.0], [8.0, 12.0]]])
    # the first pixel's centre, between all four, halfway right of the first, at the corner (3/4 outside of the map)
    points = torch.tensor([[[0.25, 0.25], [0.5, 0.5], [0.5, 0.25], [1.0, 1.0]]])
    assert sample_points(maps, points).tolist() == [[0.0, 6.0, 2.0, 3.0]]
    # x comes first
    assert sample_points(maps, torch.tensor([[[0.75, 0.25]]])).item() == 4.0


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.float64])
def test_all_dtypes_and_chunks_are_sampled_in_float32(dtype, monkeypatch):
    torch.manual_seed(0)
    maps = (torch.rand(7, 9, 5) * 2).floor().to(dtype)
    own, shared = torch.rand(7, 11, 2), torch.rand(1, 11, 2)
    expected = F.grid_sample(maps.float()[:, None], own[:, :, None] * 2 - 1, align_corners=False)[:, 0, :, 0]
    for chunk_bytes in (1, 400, 10**9):
        monkeypatch.setattr(point_sampling, "CPU_CHUNK_BYTES", chunk_bytes)
        values = sample_points(maps, own)
        assert values.dtype == torch.float32 and torch.equal(values, expected)
        assert torch.equal(sample_points(maps, shared), sample_points(maps, shared.expand(7, -1, -1)))


def test_no_maps():
    assert sample_points(torch.zeros(0, 4, 4, dtype=torch.bool), torch.rand(1, 6, 2)).shape == (0, 6)
    assert uncertain_points(torch.zeros(0, 4, 4), 8, 3.0, 0.75).shape == (0, 8, 2)


def test_random_points_are_in_the_unit_square():
    torch.manual_seed(0)
    points = random_points(3, 1000, torch.device("cpu"))
    assert points.shape == (3, 1000, 2) and points.dtype == torch.float32
    assert points.min() >= 0 and points.max() < 1
    assert torch.allclose(points.mean((0, 1)), torch.tensor([0.5, 0.5]), atol=0.02)


def test_uncertain_points_are_preferred():
    torch.manual_seed(0)
    # ramps from -8 to 8 along x and along y, uncertain in the middle
    ramp = torch.linspace(-8, 8, 32).expand(32, 32)
    logits = torch.stack([ramp, ramp.T]).requires_grad_()
    points = uncertain_points(logits, 400, oversample_ratio=3.0, importance_sample_ratio=0.75)
    assert points.shape == (2, 400, 2) and not points.requires_grad
    # the 300 of 1200 random points that are chosen are within 1/8 of the middle, and a quarter of the other 100
    for axis, values in ((0, points[0]), (1, points[1])):
        assert 300 <= ((values[:, axis] - 0.5).abs() < 0.14).sum() < 350
    # along the other axis they are spread out
    assert points[0, :, 1].std() > 0.25 and points[1, :, 0].std() > 0.25


def test_the_shares_of_chosen_and_random_points(monkeypatch):
    drawn = []

    def count(num_sets, num_points, device):
        drawn.append((num_sets, num_points))
        return torch.rand(num_sets, num_points, 2)

    monkeypatch.setattr(point_sampling, "random_points", count)
    for share, expected in ((0.75, [(2, 30), (2, 3)]), (1.0, [(2, 30)]), (0.0, [(2, 30), (2, 10)])):
        drawn.clear()
        assert uncertain_points(torch.randn(2, 4, 4), 10, 3.0, share).shape == (2, 10, 2)
        assert drawn == expected

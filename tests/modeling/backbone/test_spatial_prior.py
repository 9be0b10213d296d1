"""The convolutional branch: sizes, and that each map shows things where they are."""

from __future__ import annotations

import pytest
import torch

from sohes_d2.modeling.backbone.spatial_prior import SpatialPriorModule


@pytest.mark.parametrize("norm", ["SyncBN", "BN", "GN", "LN"])
def test_maps_have_strides_4_to_32(norm):
    maps = SpatialPriorModule(10, inplanes=6, norm=norm)(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 10, 16, 24), (2, 10, 8, 12), (2, 10, 4, 6), (2, 10, 2, 3)]
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize(("y", "x"), [(20, 150), (100, 40)])
def test_a_dot_is_at_its_position_on_every_map(y, x):
    torch.manual_seed(0)
    prior = SpatialPriorModule(16, inplanes=8, norm="BN").eval()
    plain = torch.zeros(1, 3, 128, 192)
    dotted = plain.clone()
    dotted[..., y, x] = 50.0
    for stride, before, after in zip((4, 8, 16, 32), prior(plain), prior(dotted)):
        change = (after - before).abs().sum(1)[0]
        rows, cols = change.nonzero().T
        # Half the receptive field, and half a cell, since strided convolutions look from a cell's top left corner.
        reach = {4: 8 + 2, 8: 12 + 4, 16: 20 + 8, 32: 36 + 16}[stride]
        assert len(rows) > 0
        assert ((rows + 0.5) * stride - y).abs().max() <= reach
        assert ((cols + 0.5) * stride - x).abs().max() <= reach

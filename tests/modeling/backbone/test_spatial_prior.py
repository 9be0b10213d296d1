"""The spatial prior: map sizes and alignment."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sohes_d2.modeling.backbone.spatial_prior import SpatialPriorModule, build_norm


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
        # Half the receptive field plus half a cell, since strided convolutions are centred on a cell's top left corner.
        reach = {4: 8 + 2, 8: 12 + 4, 16: 20 + 8, 32: 36 + 16}[stride]
        assert len(rows) > 0
        assert ((rows + 0.5) * stride - y).abs().max() <= reach
        assert ((cols + 0.5) * stride - x).abs().max() <= reach


@pytest.mark.parametrize(("channels", "groups"), [(192, 32), (48, 16), (30, 2), (7, 1), (1, 1)])
def test_group_norm_finds_groups_for_any_width(channels, groups):
    norm = build_norm("GN", channels)
    assert norm.num_groups == groups
    x = torch.randn(2, channels, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(norm(x), F.group_norm(x, groups))


def test_layer_norm_is_over_channels_of_each_pixel():
    y = build_norm("LN", 12)(torch.randn(2, 12, 3, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3)
    torch.testing.assert_close(y.mean(1), torch.zeros(2, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var(1, unbiased=False), torch.ones(2, 3, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("group_of_processes", [False, True])
def test_sync_batch_norm_acts_as_batch_norm_on_the_cpu(group_of_processes):
    if group_of_processes:
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        sync, plain = build_norm("SyncBN", 6), nn.BatchNorm2d(6)
        assert isinstance(sync, nn.SyncBatchNorm)  # optimizers and conversions check the type
        x = torch.randn(3, 6, 4, 5, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(sync(x), plain(x))
        assert sync.state_dict().keys() == plain.state_dict().keys()
        torch.testing.assert_close(sync.running_var, plain.running_var)
        torch.testing.assert_close(sync.eval()(x), plain.eval()(x))
    finally:
        if group_of_processes:
            torch.distributed.destroy_process_group()


def test_unknown_norm_names_the_key():
    with pytest.raises(ValueError, match="MODEL.VIT_ADAPTER.NORM 'IN' is not one of SyncBN, BN, GN, LN"):
        build_norm("IN", 8)

"""Normalisation by name: on the CPU, in one process, for odd widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sohes_d2.modeling.backbone.norms import build_norm


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
        assert isinstance(sync, nn.SyncBatchNorm)  # optimizers and conversions look for it
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

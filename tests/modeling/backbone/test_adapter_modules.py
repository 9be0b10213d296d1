"""Spatial prior: map sizes and alignment; injectors and extractors on grids that are not square and of any stride."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sohes_d2.modeling.backbone.adapter_modules import (
    ConvFFN,
    Extractor,
    Injector,
    InteractionBlock,
    SpatialPriorModule,
    TokenLayout,
    build_norm,
    split_maps,
)

DIM = 12
LEVELS = [(8, 16), (4, 8), (2, 4)]  # of a 64 x 128 image
COUNT = sum(rows * cols for rows, cols in LEVELS)
GRIDS = [(8, 16), (4, 8), (2, 4)]  # token strides 8, 16, 32


def layout_of(grid: tuple[int, int]) -> TokenLayout:
    return TokenLayout.of(grid, LEVELS, torch.empty(0))


def look_straight_ahead(attention: nn.Module) -> None:
    """Sample only at the reference point, by zero offsets."""
    nn.init.zeros_(attention.sampling_offsets.weight)
    nn.init.zeros_(attention.sampling_offsets.bias)


def reached(points: tuple[int, int], cells: tuple[int, int], place: tuple[int, int]) -> list[list[int]]:
    """Cells of a ``points`` map whose centres use cell ``place`` of a ``cells`` map in bilinear sampling."""
    return [
        [i, j]
        for i in range(points[0])
        for j in range(points[1])
        if abs((i + 0.5) / points[0] * cells[0] - (place[0] + 0.5)) < 1
        and abs((j + 0.5) / points[1] * cells[1] - (place[1] + 0.5)) < 1
    ]


def test_split_maps_keeps_rows_and_levels():
    tokens = torch.arange(2 * COUNT * DIM).reshape(2, COUNT, DIM)
    maps = split_maps(tokens, LEVELS)
    assert [tuple(m.shape) for m in maps] == [(2, DIM, *level) for level in LEVELS]
    assert torch.equal(maps[1][1, :, 2, 5], tokens[1, 8 * 16 + 2 * 8 + 5])
    assert torch.equal(torch.cat([m.flatten(2) for m in maps], 2).transpose(1, 2), tokens)


@pytest.mark.parametrize("grid", GRIDS)
def test_extractor_samples_patch_tokens_at_the_same_position_on_every_level(grid):
    torch.manual_seed(0)
    extractor = Extractor(DIM, num_heads=3, num_points=2, ratio=0.5, cffn_ratio=0.25, drop_path=0.0)
    look_straight_ahead(extractor.attn)
    nn.init.zeros_(extractor.ffn.fc2.weight)  # its convolution would spread the change
    layout = layout_of(grid)
    place = row, col = grid[0] - 2, 1
    spatial, patches = torch.randn(2, COUNT, DIM), torch.zeros(2, grid[0] * grid[1], DIM)
    dotted = patches.clone()
    dotted[0, row * grid[1] + col, 0] = 1.0
    change = (extractor(spatial, dotted, layout) - extractor(spatial, patches, layout)).abs().sum(2)
    assert change[1].max() == 0  # the other image is unchanged
    for level, shape in zip(split_maps(change[..., None], LEVELS), LEVELS):
        assert level[0, 0].nonzero().tolist() == reached(shape, grid, place) != []


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_injector_samples_spatial_tokens_at_the_same_position(grid, level):
    torch.manual_seed(0)
    injector = Injector(DIM, num_heads=3, num_points=2, ratio=0.5)
    look_straight_ahead(injector.attn)
    nn.init.ones_(injector.gamma)
    layout = layout_of(grid)
    rows, cols = LEVELS[level]
    place = row, col = rows - 2, 1
    patches, spatial = torch.randn(1, grid[0] * grid[1], DIM), torch.zeros(1, COUNT, DIM)
    dotted = spatial.clone()
    dotted[0, sum(r * c for r, c in LEVELS[:level]) + row * cols + col, 0] = 1.0
    change = (injector(patches, dotted, layout) - injector(patches, spatial, layout)).abs().sum(2).view(grid)
    assert change.nonzero().tolist() == reached(grid, LEVELS[level], place) != []


def test_injector_starts_as_the_identity_but_learns():
    injector = Injector(DIM, num_heads=3, num_points=2, ratio=0.5)
    patches, spatial = torch.randn(2, 32, DIM), torch.randn(2, COUNT, DIM)
    out = injector(patches, spatial, layout_of((4, 8)))
    assert torch.equal(out, patches)
    out.square().sum().backward()
    assert injector.gamma.grad.abs().min() > 0


def test_conv_ffn_mixes_neighbours_within_a_level_only():
    torch.manual_seed(0)
    ffn = ConvFFN(DIM, 6)
    tokens = torch.randn(1, COUNT, DIM)
    dotted = tokens.clone()
    start = 8 * 16
    dotted[0, start + 3 * 8 + 0] += 1.0  # level 1, row 3 (the last), column 0
    change = (ffn(dotted, LEVELS) - ffn(tokens, LEVELS)).abs().sum(2)
    fine, middle, coarse = split_maps(change[..., None], LEVELS)
    assert fine.max() == 0
    assert coarse.max() == 0
    assert middle[0, 0].nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]


def test_the_block_does_not_change_prefix_tokens():
    torch.manual_seed(0)
    block = InteractionBlock(DIM, num_heads=3, num_points=2, deform_ratio=0.5, cffn_ratio=0.25, num_extractors=2)
    nn.init.ones_(block.injector.gamma)
    tokens, spatial, layout = torch.randn(2, 3 + 32, DIM), torch.randn(2, COUNT, DIM), layout_of((4, 8))
    seen = []
    after, extracted = block(tokens, spatial, layout, lambda t: seen.append(t) or t * 2)
    patches = block.injector(tokens[:, 3:], spatial, layout)
    assert torch.equal(seen[0], torch.cat([tokens[:, :3], patches], 1))
    assert torch.equal(after, seen[0] * 2)
    expected = spatial
    for extractor in block.extractors:
        expected = extractor(expected, patches * 2, layout)
    assert torch.equal(extracted, expected)
    bare, _ = block(tokens[:, 3:], spatial, layout, lambda t: t)
    assert torch.equal(bare, patches)


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

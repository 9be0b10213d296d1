"""Shared positions of two crops, and features there."""

from __future__ import annotations

import torch

from sohes_d2.pretraining.contrast import common_places, features_at, moved_apart

BOXES = torch.tensor([[[0.0, 0.0, 40.0, 60.0], [10.0, 30.0, 50.0, 90.0]]])


def coordinate_map(box: torch.Tensor, flip: bool, cells: int = 10) -> torch.Tensor:
    """(1, 2, cells, cells): each cell's feature is (y, x) of its centre in the photo."""
    y0, x0, y1, x1 = box.tolist()
    steps = (torch.arange(cells) + 0.5) / cells
    y, x = torch.meshgrid(y0 + steps * (y1 - y0), x0 + steps * (x1 - x0), indexing="ij")
    maps = torch.stack([y, x])[None]
    return maps.flip(-1) if flip else maps


def test_features_are_sampled_at_the_point_in_the_photo():
    places = torch.tensor([[[20.0, 40.0], [33.0, 51.0]]])
    for view, flip in ((0, False), (0, True), (1, False), (1, True)):
        box = BOXES[:, view]
        found = features_at(coordinate_map(box[0], flip), places, box, torch.tensor([flip]))
        torch.testing.assert_close(found, places, atol=1e-4, rtol=0)


def test_points_are_in_both_views():
    torch.manual_seed(0)
    places = common_places(BOXES, 500)
    assert places.shape == (1, 500, 2)
    low, high = places[0].amin(0), places[0].amax(0)
    assert (low >= torch.tensor([10, 30])).all() and (high <= torch.tensor([40, 60])).all()
    torch.testing.assert_close(places[0].mean(0), torch.tensor([25.0, 45.0]), atol=1.5, rtol=0)


def test_points_move_by_patches_and_stay_in_the_view():
    torch.manual_seed(0)
    box = torch.tensor([[0.0, 0.0, 100.0, 200.0]])
    places = torch.tensor([50.0, 100.0]).expand(1, 4000, 2)
    moved = moved_apart(places, box, patch_share=0.1, sigma=0.5)
    torch.testing.assert_close(moved[0].std(0), torch.tensor([5.0, 10.0]), atol=0.4, rtol=0)
    corner = moved_apart(torch.zeros(1, 100, 2), box, 0.1, 0.5)
    assert corner.min() == 0
    assert moved_apart(places, box, 0.1, 0.0) is places

"""The guided filter on the device: consistent with phase 1's, and accurate at edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sohes_d2.exploration.refinement import guided
from sohes_d2.modeling.masks import refine_masks


def blobs(count, size, seed=0):
    """(N, H, W) bool masks with smooth outlines."""
    random = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.randn(1, count, 6, 6, generator=random), size=size, mode="bilinear")[0] > 0


def patchwork(size, seed=0):
    """(3, H, W) photo of smooth colours with sharp edges, in [0, 255]."""
    random = torch.Generator().manual_seed(seed)
    colours = F.interpolate(torch.randn(1, 3, 5, 5, generator=random), size=size, mode="bilinear")[0]
    return (colours * 2).round().clamp(-2, 2) * 50 + 125


def refined(masks, photo, radius, **settings):
    """(N, H, W) bool refined masks."""
    return torch.cat([values > 0 for values in refine_masks(masks, photo, radius, 0.01, **settings)])


def test_agrees_with_the_refiner_of_phase_1():
    size = (96, 120)
    masks, photo = blobs(8, size), patchwork(size)
    found = refined(masks, photo, 6).numpy()
    refine = guided(radius=1.0, epsilon=0.01).on(photo.permute(1, 2, 0).byte().numpy(), cell=6)
    window = (slice(0, size[0]), slice(0, size[1]))
    expected = np.stack([refine(window, mask.numpy()) for mask in masks])
    changed = (expected != masks.numpy()).mean()
    assert changed > 0.02
    # it is fitted at half the size, and treats the image border differently
    assert (found != expected).mean() < 0.5 * changed


@pytest.mark.parametrize("size", [(40, 56), (41, 57)])
def test_a_mask_some_pixels_off_is_moved_to_the_edge(size):
    photo = torch.full((3, *size), 30.0)
    photo[0, 10:30, 12:40] = 200.0
    truth = photo[:1] > 100
    mask = torch.zeros_like(truth)
    mask[:, 8:28, 14:42] = True
    assert (mask != truth).sum() == 184
    assert (refined(mask, photo, 6) != truth).sum() < 20


def test_without_edges_a_straight_outline_is_unchanged():
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[:, :, :20] = True
    assert torch.equal(refined(mask, torch.full((3, 40, 40), 128.0), 4), mask)


def test_results_do_not_depend_on_chunks_and_may_be_empty():
    size = (48, 64)
    masks, photo = blobs(5, size), patchwork(size)
    assert torch.equal(refined(masks, photo, 5), refined(masks, photo, 5, chunk_bytes=1))
    assert refined(masks[:0], photo, 5).shape == (0, *size)


def test_a_mask_that_would_change_too_much_is_unchanged():
    mask = torch.zeros(1, 48, 48, dtype=torch.bool)
    mask[:, 8:40, 20:23] = True
    assert torch.equal(refined(mask, torch.full((3, 48, 48), 90.0), 12), mask)


def test_pixels_far_from_the_masks_have_no_effect():
    masks, photo = blobs(3, (48, 64)), patchwork((56, 80))
    assert torch.equal(refined(masks, photo, 5), refined(masks, photo[:, :48, :64], 5))


def test_masks_are_unchanged_if_iou_with_the_refined_mask_is_below_one_half(monkeypatch):
    size = (64, 64)
    rows = torch.arange(64)[:, None].expand(size)
    widths = range(8, 26)
    thin = torch.stack([(rows >= 20) & (rows < 20 + w) & (rows.T >= 8) & (rows.T < 8 + 2 * w) for w in widths])
    photo = patchwork(size)
    found = refined(thin, photo, 10)
    monkeypatch.setattr("sohes_d2.modeling.masks._MIN_AGREEMENT", 0.0)
    free = refined(thin, photo, 10)
    ious = (free & thin).sum((1, 2)) / (free | thin).sum((1, 2))
    assert ((ious > 0.3) & (ious < 0.45)).any() and ((ious > 0.5) & (ious < 0.6)).any()
    assert torch.equal(found, torch.where((ious >= 0.5)[:, None, None], free, thin))


def test_a_mask_whose_iou_with_its_refined_self_equals_the_threshold_is_refined(monkeypatch):
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[:, :, :20] = True
    photo = torch.full((3, 40, 40), 128.0)
    monkeypatch.setattr("sohes_d2.modeling.masks._MIN_AGREEMENT", 1.0)  # the IoU is 1 on a uniform photo
    (values,) = refine_masks(mask, photo, 4, 0.01)
    assert values.abs().min() < 0.4  # values of a mask that is not refined are -0.5 and 0.5

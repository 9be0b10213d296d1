"""Test-time augmentation: masks are transformed back, and agreement between transforms raises scores."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.decoder_outputs import block, outputs_of

from sohes_d2 import add_sohes_config
from sohes_d2.modeling.masks import entity_probabilities
from sohes_d2.modeling.test_time_augmentation import NO_TTA, TRANSFORMS, TTA

from detectron2.config import get_cfg

SIDE = 16


def fuse(*found, nms_threshold=0.6):
    return TTA(nms_threshold=nms_threshold).fuse(found)


def support_of(fused):
    return entity_probabilities(fused["pred_logits"][0], fused["pred_masks"][0]).tolist()


def inside_of(fused):
    return fused["pred_masks"][0] > 0


def test_transforms_are_the_eight_invertible_symmetries_of_a_square():
    maps = torch.rand(2, 3, 5, 7)
    seen = [view.apply(maps) for view in TRANSFORMS.values()]
    assert len({tuple(each.flatten().tolist()) for each in seen}) == 8
    for name, view, each in zip(TRANSFORMS, TRANSFORMS.values(), seen):
        assert each.shape[-2:] == ((7, 5) if "90" in name or "270" in name else (5, 7))
        assert torch.equal(view.undo(each), maps), name
    corner = torch.tensor([[1, 2], [3, 4]])
    assert TRANSFORMS["hflip"].apply(corner).tolist() == [[2, 1], [4, 3]]
    assert TRANSFORMS["rot90"].apply(corner).tolist() == [[2, 4], [1, 3]]
    assert TRANSFORMS["hflip_rot180"].apply(corner).tolist() == [[3, 4], [1, 2]]


def test_masks_are_mapped_back_for_every_transform():
    """With a model that segments the bright pixels, on a map of a quarter of the size."""
    seen = []

    def segment(images):
        seen.append(images)
        return {
            "pred_logits": torch.zeros(len(images), 1, 2),
            "pred_masks": 2 * images[:, :1, ::4, ::4] - 1,
            "aux_outputs": "what the layers before say",
        }

    images = torch.zeros(2, 3, 32, 64)
    images[0, :, 4:12, 40:60] = 1
    images[1, :, 16:, :8] = 1
    found = TTA(tuple(TRANSFORMS.values())).ask(segment, images)
    assert [tuple(each.shape[-2:]) for each in seen] == [(32, 64), (32, 64), (64, 32), (32, 64)] + [
        (64, 32), (64, 32), (32, 64), (64, 32)
    ]  # fmt: skip
    for outputs in found:
        assert outputs.keys() == {"pred_logits", "pred_masks"}
        # cells have the value of their corner, not their centre, so that mirrored ones may be off by a cell
        whole = torch.nn.functional.interpolate(outputs["pred_masks"], scale_factor=4) > 0
        assert (whole[:, 0] == (images[:, 0] > 0)).float().mean() > 0.9
    assert torch.equal(found[0]["pred_masks"], 2 * images[:, :1, ::4, ::4] - 1)


def test_one_transform_changes_nothing():
    outputs = outputs_of([0.9, 0.2], [block(0, 0, 4, 4), block(0, 0, 4, 5)])
    assert fuse(outputs) is outputs
    [found] = NO_TTA.ask(lambda images: outputs, torch.zeros(1, 3, 64, 64))
    assert found["pred_masks"] is outputs["pred_masks"]


def test_masks_of_both_transforms_rank_above_confident_masks_of_one():
    both, alone = block(0, 0, 8, 8), block(10, 10, 14, 14)
    fused = fuse(outputs_of([0.95, 0.7], [alone, both]), outputs_of([0.6, 0.3], [both, block(12, 0, 16, 4)]))
    assert support_of(fused) == pytest.approx([(0.7 + 0.6) / 2, 0.95 / 2])
    assert torch.equal(inside_of(fused), torch.stack([both, alone]) > 0)
    assert fused["pred_logits"].dtype == fused["pred_masks"].dtype == torch.float32


def test_support_is_weighted_by_the_overlap():
    # a mask of 32 cells, 24 of which are in that of the other view
    fused = fuse(outputs_of([0.8], [block(0, 0, 8, 4)]), outputs_of([0.4], [block(0, 0, 6, 4)]))
    assert support_of(fused) == pytest.approx([(0.8 + 0.75 * 0.4) / 2])


def test_a_mask_is_the_mean_over_matching_transforms():
    # three views have different outlines of a mask; a fourth has another mask, which is ignored
    views = [outputs_of([0.9], [block(0, 0, 8, width)]) for width in (6, 7, 8)] + [
        outputs_of([0.9], [block(12, 12, 16, 16)])
    ]
    fused = fuse(*views)
    assert torch.equal(inside_of(fused)[0], block(0, 0, 8, 7) > 0)
    probabilities = fused["pred_masks"][0, 0].sigmoid()
    assert probabilities[0, 6:8].tolist() == pytest.approx([2 / 3, 1 / 3], abs=1e-3)
    # pixels that are certain in all views stay certain
    assert probabilities[0, 0] > 0.999 and probabilities[15, 15] < 0.001


def test_nms_keeps_one_of_overlapping_masks_but_not_only_one_of_a_chain():
    # each has IoU 0.6 with the next, and 1/3 with the one after it
    chain = [block(0, x, 8, x + 8) for x in (0, 2, 4, 6)]
    one = outputs_of([0.9, 0.8, 0.7, 0.6], chain)
    none = outputs_of([0.5] * 4, [torch.full((SIDE, SIDE), -1.0)] * 4)
    fused = fuse(one, none, nms_threshold=0.5)
    assert support_of(fused)[:2] == pytest.approx([0.45, 0.35])
    assert torch.equal(inside_of(fused)[:2], torch.stack([chain[0], chain[2]]) > 0)
    assert support_of(fuse(one, none, nms_threshold=0.65)) == pytest.approx([0.45, 0.4, 0.35, 0.3])


def test_empty_slots_are_never_entities():
    fused = fuse(outputs_of([0.9, 0.8], [block(0, 0, 8, 8)] * 2), outputs_of([0.7, 0.6], [block(0, 0, 8, 8)] * 2))
    assert fused["pred_masks"].shape == (1, 2, SIDE, SIDE) and fused["pred_logits"].shape == (1, 2, 2)
    assert support_of(fused) == pytest.approx([0.8, 0]) and support_of(fused)[1] == 0
    assert not inside_of(fused)[1].any()
    assert not fused["pred_logits"].isnan().any()


def test_ancestors_come_from_the_first_transform():
    first, second = block(0, 0, 8, 8), block(10, 10, 14, 14)
    up, down = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[5.0], [6.0]])
    # the other view has them in reverse order, with higher scores
    fused = fuse(
        outputs_of([0.6, 0.7], [first, second], (up, down)), outputs_of([0.9, 0.8], [second, first], (-up, -down))
    )
    assert torch.equal(inside_of(fused), torch.stack([second, first]) > 0)
    assert fused["pred_ancestors"][0].tolist() == [[[3.0, 4.0], [1.0, 2.0]]]
    assert fused["pred_ancestors"][1].tolist() == [[[6.0], [5.0]]]


def test_images_do_not_mix():
    a = outputs_of([0.9], [block(0, 0, 8, 8)]), outputs_of([0.7], [block(0, 0, 8, 8)])
    b = outputs_of([0.5], [block(8, 8, 16, 16)]), outputs_of([0.3], [block(8, 8, 16, 16)])
    together = fuse(*({name: torch.cat([one[name], other[name]]) for name in one} for one, other in zip(a, b)))
    for k, alone in enumerate((fuse(*a), fuse(*b))):
        for name, value in alone.items():
            assert torch.equal(together[name][k], value[0]), name


def test_nan_values_do_not_spread():
    good = outputs_of([0.9], [block(0, 0, 8, 8)])
    bad = outputs_of([math.nan], [torch.full((SIDE, SIDE), math.nan)])
    fused = fuse(good, bad)
    assert support_of(fused) == pytest.approx([0.45])
    assert torch.equal(inside_of(fused)[0], block(0, 0, 8, 8) > 0)


def test_no_gradient_and_half_precision():
    outputs = outputs_of([0.9, 0.4], [block(0, 0, 8, 8), block(2, 2, 12, 12)])
    half = {name: value.bfloat16().requires_grad_() for name, value in outputs.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = fuse(half, half)
    assert not any(value.requires_grad for value in fused.values())
    assert all(value.dtype == torch.float32 for value in fused.values())
    assert support_of(fused) == pytest.approx([0.9, 0.4], abs=0.01)


def test_settings():
    cfg = get_cfg()
    add_sohes_config(cfg)
    for node in (cfg.TEST.TTA, cfg.CORRECTION.TEACHER_TTA):
        assert TTA.from_config(node, "KEY") == NO_TTA
    cfg.TEST.TTA.TRANSFORMS = ["identity", "rot180"]
    cfg.TEST.TTA.NMS_THRESHOLD = 0.7
    assert TTA.from_config(cfg.TEST.TTA, "KEY") == TTA((TRANSFORMS["identity"], TRANSFORMS["rot180"]), 0.7)
    for names, message in [
        (["identity", "vflip"], "KEY.TRANSFORMS has the unknown transform 'vflip'; known are identity, hflip"),
        (["hflip"], "KEY.TRANSFORMS must begin with 'identity'"),
        ([], "KEY.TRANSFORMS must begin with 'identity'"),
        (["identity", "hflip", "hflip"], "KEY.TRANSFORMS has a transform twice"),
    ]:
        cfg.TEST.TTA.TRANSFORMS = names
        with pytest.raises(ValueError, match=message):
            TTA.from_config(cfg.TEST.TTA, "KEY")

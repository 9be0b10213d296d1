"""Pseudo-labels from the teacher's outputs: selection, weights, ancestors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.decoder_outputs import block, entity_logits, outputs_of

from sohes_d2 import add_sohes_config
from sohes_d2.correction import targets as targets_module
from sohes_d2.correction.targets import TeacherTargets
from sohes_d2.correction.thresholds import dynamic, fixed, top_k
from sohes_d2.modeling.criterion import SetCriterion
from sohes_d2.modeling.inference import EntityInference
from sohes_d2.modeling.matcher import HungarianMatcher

from detectron2.config import get_cfg

PADDED = (64, 64)
IMAGE = (48, 64)


def label_mask(y0, x0, y1, x1):
    mask = torch.zeros(1, *PADDED, dtype=torch.bool)
    mask[:, y0:y1, x0:x1] = True
    return mask


def make(threshold=None, **changes):
    return TeacherTargets(**{"threshold": threshold or fixed(tau=0.5), **changes})


def labels_of(teacher, outputs, initial=None, branch_weights=(1.0, 2.0), image_size=IMAGE):
    (target,) = teacher(outputs, [initial], PADDED, [image_size], branch_weights)
    return target


def random_outputs(queries=30, seed=0):
    """Two images with noisy discs of all sizes and random ancestor embeddings."""
    random = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    center = 16 * torch.rand(2, 2, queries, 1, 1, generator=random)
    radius = 7 * torch.rand(2, queries, 1, 1, generator=random)
    noise = torch.randn(2, queries, 16, 16, generator=random)
    masks = radius - ((y - center[0]) ** 2 + (x - center[1]) ** 2).sqrt() + noise
    sides = tuple(torch.randn(2, queries, 3, generator=random) for _ in range(2))
    return {
        "pred_logits": 2 * torch.randn(2, queries, 2, generator=random),
        "pred_masks": 2 * masks,
        "pred_ancestors": sides,
    }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def test_small_masks_need_lower_scores_and_labels_are_sorted_by_score():
    # two masks of 1/3 of the image (tau = 0.7) and two of about 49 pixels (tau = 0.54)
    masks = [block(0, 0, 8, 8), block(1, 12, 2, 13, 99.0), block(5, 12, 6, 13, 99.0), block(8, 8, 12, 16)]
    target = labels_of(make(dynamic()), outputs_of([0.65, 0.62, 0.5, 0.9], masks))
    assert len(target["labels"]) == 2
    assert target["scores"].tolist() == pytest.approx([0.88, 0.58], abs=0.01)
    assert target["labels"].tolist() == [0, 0] and target["labels"].dtype == torch.int64
    assert target["label_weights"].tolist() == [1, 1]
    assert 45 <= target["masks"][1].sum() <= 60
    assert target["image_weight"].item() == 1 and target["image_weight"].shape == ()
    assert target["masks"].dtype == torch.bool and target["masks"].shape == (2, *PADDED)
    # the large mask, with corners rounded by interpolation
    expected = label_mask(32, 32, 48, 64)[0]
    assert (target["masks"][0] != expected).sum() <= 4
    assert len(labels_of(make(top_k(k=3)), outputs_of([0.65, 0.62, 0.5, 0.9], masks))["labels"]) == 3


def test_labels_equal_the_predictions_of_inference():
    """Masks, scores and the ancestors of the forest, at the size of the input."""
    outputs = random_outputs()
    teacher = make(fixed(tau=0.3), nms_threshold=1.0, min_area=0)
    found = teacher(outputs, [None, None], PADDED, [IMAGE, PADDED], (1.0, 2.0))
    relations = 0
    for k, (target, size) in enumerate(zip(found, (IMAGE, PADDED))):
        sides = tuple(side[k] for side in outputs["pred_ancestors"])
        arguments = outputs["pred_logits"][k], outputs["pred_masks"][k], sides, PADDED, size, size
        inference = EntityInference(min_score=0.3)
        expected = inference.combine([inference.find(*arguments)], size)
        assert torch.equal(target["scores"], expected["instances"].scores)
        masks = torch.from_numpy(np.asarray(expected["instances"].pred_masks).astype(bool))
        assert torch.equal(target["masks"][:, : size[0], : size[1]], masks)
        assert np.array_equal(target["ancestors"].numpy(), expected["forest"].ancestors())
        relations += int(target["ancestors"].sum())
    assert relations > 10


def test_the_padding_is_neither_counted_nor_labelled():
    # half of the first mask and all of the second are in the padding below the image
    outputs = outputs_of([0.9, 0.9], [block(10, 0, 14, 4), block(13, 8, 16, 16)])
    target = labels_of(make(), outputs)
    assert len(target["masks"]) == 1 and not target["masks"][:, 48:].any()
    assert (target["masks"][0] != label_mask(40, 0, 48, 16)[0]).sum() <= 4
    area = int(target["masks"].sum())
    assert len(labels_of(make(min_area=area), outputs)["masks"]) == 1
    assert len(labels_of(make(min_area=area + 1), outputs)["masks"]) == 0
    # areas are relative to the image without padding: 1/24 of 48 x 64
    seen = []

    def threshold(areas, scores):
        seen.append(areas)
        return scores > 0

    threshold.least_score = 0.0
    labels_of(make(threshold), outputs)
    assert seen[0].tolist() == pytest.approx([area / (48 * 64)]) and area / (48 * 64) == pytest.approx(1 / 24, abs=2e-3)


def test_duplicates_of_initial_labels_get_the_remaining_weight():
    masks = [block(0, 0, 8, 8), block(0, 8, 8, 16), block(8, 8, 10, 10)]
    outputs = outputs_of([0.9, 0.8, 0.7], masks)
    # the first mask; a quarter of the second; and one that the teacher does not predict
    initial = {"masks": torch.cat([label_mask(0, 0, 32, 32), label_mask(0, 32, 16, 48), label_mask(40, 0, 48, 8)])}

    def weights(branch_weights, **changes):
        return labels_of(make(**changes), outputs, initial, branch_weights)["label_weights"].tolist()

    assert weights((1.0, 2.0)) == [0.5, 1, 1]
    # total with the initial branch: 0.6 * 1 + 2.4 * 0.75 = 2.4
    assert weights((0.6, 2.4)) == pytest.approx([0.75, 1, 1])
    assert weights((0.0, 3.0)) == [1, 1, 1]
    assert weights((3.0, 2.0)) == [0, 1, 1] and weights((1.0, 0.0)) == [0, 1, 1]
    assert weights((1.0, 2.0), initial_iou_threshold=0.2) == [0.5, 0.5, 1]
    empty = {"masks": torch.zeros(0, *PADDED, dtype=torch.bool)}
    assert labels_of(make(), outputs, empty)["label_weights"].tolist() == [1, 1, 1]


def test_the_best_of_the_teachers_duplicates_is_the_label():
    masks = [block(0, 0, 8, 8), block(0, 0, 8, 8, 9.0), block(0, 0, 8, 7)]
    outputs = outputs_of([0.7, 0.9, 0.8], masks)
    assert labels_of(make(), outputs)["scores"].tolist() == pytest.approx([0.9, 0.8], abs=0.03)
    assert len(labels_of(make(nms_threshold=1.0), outputs)["scores"]) == 3
    assert len(labels_of(make(nms_threshold=0.8), outputs)["scores"]) == 1
    # a mask that overlaps only a removed mask is kept, as at inference
    chain = outputs_of([0.9, 0.8, 0.7], [block(0, 0, 8, 4), block(0, 1, 8, 5), block(0, 2, 8, 6)])
    scores = labels_of(make(nms_threshold=0.5), chain)["scores"]
    assert scores.tolist() == pytest.approx([0.9, 0.7], abs=0.05)


def test_the_best_labels_are_kept_if_there_are_too_many():
    outputs = random_outputs()
    all_of_them = make(nms_threshold=1.0)(outputs, [None, None], PADDED, [IMAGE, IMAGE], (1.0, 2.0))
    some = make(nms_threshold=1.0, max_labels=4)(outputs, [None, None], PADDED, [IMAGE, IMAGE], (1.0, 2.0))
    for whole, part in zip(all_of_them, some):
        assert len(whole["scores"]) > 4 and whole["scores"].tolist() == sorted(whole["scores"].tolist(), reverse=True)
        assert torch.equal(part["scores"], whole["scores"][:4]) and torch.equal(part["masks"], whole["masks"][:4])


def test_ancestors_of_each_source():
    # masks: 0 is in 1, and both are in 2; the head predicts 1 in 2, and 1 in 0, which is smaller
    masks = [block(0, 0, 2, 2), block(0, 0, 4, 4), block(0, 0, 8, 8)]
    up, down = torch.tensor([[0.0, 9, -9], [-9, 0, -9], [-9, 0, 9]]), torch.eye(3)
    # logits up @ down.T: [0, 1] = 9 (0 is smaller than 1), [2, 1] = 0 (probability 1/2), [2, 2] is not a pair
    outputs = outputs_of([0.9, 0.8, 0.7], masks, (up, down))
    relation = labels_of(make(), outputs)["ancestors"]
    assert relation.nonzero().tolist() == [[2, 1]]
    assert labels_of(make(ancestor_threshold=0.6), outputs)["ancestors"].sum() == 0
    relation = labels_of(make(ancestors="coverage"), outputs)["ancestors"]
    assert relation.nonzero().tolist() == [[1, 0], [2, 0], [2, 1]]
    assert "ancestors" not in labels_of(make(ancestors="none"), outputs)
    del outputs["pred_ancestors"]
    assert "ancestors" not in labels_of(make(), outputs), "there is no head to be taught"
    assert labels_of(make(ancestors="coverage"), outputs)["ancestors"].sum() == 3


@pytest.mark.parametrize("broken", ["unsure", "empty", "nan"])
def test_an_image_without_labels_has_weight_zero(broken):
    outputs = random_outputs(queries=5)
    if broken == "unsure":
        outputs["pred_logits"][0] = entity_logits(*[0.2] * 5)
    elif broken == "empty":
        outputs["pred_masks"][0] = -1.0
    else:
        outputs["pred_masks"][0, :3] = float("nan")
        outputs["pred_logits"][0, 2:] = float("nan")
    initial = [{"masks": label_mask(0, 0, 32, 32)}, None]
    first, second = make(fixed(tau=0.3))(outputs, initial, PADDED, [IMAGE, IMAGE], (1.0, 2.0))
    assert first["image_weight"].item() == 0 and second["image_weight"].item() == 1
    shapes = {name: tuple(first[name].shape) for name in ("labels", "masks", "ancestors", "label_weights", "scores")}
    assert shapes == {
        "labels": (0,),
        "masks": (0, *PADDED),
        "ancestors": (0, 0),
        "label_weights": (0,),
        "scores": (0,),
    }
    # with weight 0, its queries are not trained as background
    logits = torch.randn(2, 5, 2, requires_grad=True)
    student = {"pred_logits": logits, "pred_masks": torch.randn(2, 5, 16, 16)}
    matcher = HungarianMatcher(cost_class=2.0, cost_mask=5.0, cost_dice=5.0, num_points=64)
    losses = SetCriterion(matcher=matcher, weight_dict={}, num_points=64)(student, [first, second])
    losses["loss_ce"].backward()
    assert not logits.grad[0].any() and logits.grad[1].any()


def test_rejected_masks_are_not_upsampled(monkeypatch):
    counts = []

    def counting(masks, *arguments):
        counts.append(len(masks))
        return original(masks, *arguments)

    original = targets_module.full_size_logits
    monkeypatch.setattr(targets_module, "full_size_logits", counting)
    outputs = outputs_of(
        [0.9, 0.45, 0.6, 0.99],
        [block(0, 0, 8, 8), block(0, 8, 8, 16), block(8, 0, 12, 16, 0.1)] + [torch.full((16, 16), -1.0)],
    )
    target = labels_of(make(), outputs)
    # the third passes by its class probability, but its faint mask lowers the score
    assert counts == [2, 1] and len(target["scores"]) == 1


def test_autocast_does_not_round_ancestors():
    """In bfloat16 0.999 rounds to 1, so that the logit -0.001 would become 0 and reach the threshold."""
    sides = torch.tensor([[0.999, -1.0]] * 2), torch.ones(2, 2)
    outputs = outputs_of([0.9, 0.8], [block(0, 0, 8, 8), block(0, 0, 4, 4)], sides)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert labels_of(make(), outputs)["ancestors"].sum() == 0
        assert labels_of(make(ancestor_threshold=0.499), outputs)["ancestors"].nonzero().tolist() == [[0, 1]]


def test_chunks_and_precision_do_not_matter():
    outputs = random_outputs()
    arguments = [None, {"masks": label_mask(0, 0, 32, 32)}], PADDED, [IMAGE, PADDED], (1.0, 2.0)
    whole = make()(outputs, *arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chunked = make(chunk_bytes=1)(outputs, *arguments)
    for a, b in zip(whole, chunked):
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    half = {
        name: tuple(side.bfloat16() for side in value) if isinstance(value, tuple) else value.bfloat16()
        for name, value in outputs.items()
    }
    for target in make()(half, *arguments):
        assert target["scores"].dtype == target["label_weights"].dtype == torch.float32


def test_labels_carry_no_gradient_and_outputs_are_unchanged():
    outputs = random_outputs()
    before = outputs["pred_masks"].clone()
    for tensor in (outputs["pred_logits"], outputs["pred_masks"], *outputs["pred_ancestors"]):
        tensor.requires_grad_()
    # (16, 16): masks that already have the size of the input are not resized, so they might be views
    for size in (PADDED, (16, 16)):
        for target in make(min_area=1)(outputs, [None, None], size, [size, size], (1.0, 2.0)):
            assert len(target["labels"]) and not any(value.requires_grad for value in target.values())
    assert torch.equal(outputs["pred_masks"], before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_everything_stays_on_the_device():
    outputs = random_outputs()
    on_device = {
        name: tuple(side.cuda() for side in value) if isinstance(value, tuple) else value.cuda()
        for name, value in outputs.items()
    }
    initial = {"masks": label_mask(0, 0, 32, 32).cuda()}
    for target in make()(on_device, [None, initial], PADDED, [IMAGE, PADDED], (1.0, 2.0)):
        assert all(value.is_cuda for value in target.values())


def photo_with_a_square(y0, x0, y1, x1):
    """(3, 64, 64) dark photo with a bright square."""
    photo = torch.full((3, *PADDED), 20.0)
    photo[:, y0:y1, x0:x1] = 220.0
    return photo


def test_outlines_are_refined_to_edges():
    # on the decoder's grid of 4 pixels, the outline of the square is 3 pixels off on all sides
    outputs, photo = outputs_of([0.9], [block(3, 4, 9, 10)]), photo_with_a_square(15, 19, 33, 37)
    (plain,) = make()(outputs, [None], PADDED, [IMAGE], (1.0, 2.0), [photo])
    (refined,) = make(refinement_radius=6)(outputs, [None], PADDED, [IMAGE], (1.0, 2.0), [photo])
    truth = label_mask(15, 19, 33, 37)
    wrong = [int((target["masks"] != truth).sum()) for target in (plain, refined)]
    assert wrong[0] > 200 and wrong[1] < 12, wrong
    assert torch.equal(refined["scores"], plain["scores"])


def test_refinement_leaves_the_padding_empty():
    # the square continues below the photo, which ends at row 48
    outputs, photo = outputs_of([0.9], [block(6, 4, 16, 10)]), photo_with_a_square(23, 15, 64, 41)
    (target,) = make(refinement_radius=4)(outputs, [None], PADDED, [IMAGE], (1.0, 2.0), [photo])
    assert target["masks"][:, 40:48].any() and not target["masks"][:, 48:].any()


CROP = (0, 0, 32, 32)  # enlarged to 64 x 64, so a cell of its 16 x 16 map is 2 pixels of the image


def labels_with_crops(teacher, whole, crops, image_size=IMAGE):
    (target,) = teacher(whole, [None], PADDED, [image_size], (1.0, 2.0), None, crops)
    return target


def nothing(sides=None):
    return outputs_of([0.01], [block(0, 0, 1, 1)], sides)


def test_small_entities_come_from_crops_at_their_position():
    crop = (16, 24, 48, 56)
    target = labels_with_crops(make(fixed(tau=0.3)), nothing(), [(crop, outputs_of([0.9], [block(4, 6, 9, 10)]))])
    wrong = (target["masks"][0] ^ label_mask(24, 36, 34, 44)[0]).sum()
    assert len(target["masks"]) == 1 and wrong <= 4, wrong
    # mean of 0.9 in the crop and 0 in the whole image
    assert target["scores"].tolist() == pytest.approx([0.9 / 2], abs=0.01)


def test_the_score_is_the_mean_support_of_the_looks_that_contain_a_mask():
    # 16 x 16 pixels in the whole image; the same and half of it in two crops; the third crop does not contain it
    whole = outputs_of([0.9], [block(2, 2, 6, 6)])
    same, half = outputs_of([0.6], [block(4, 4, 12, 12)]), outputs_of([0.8], [block(4, 4, 12, 8)])
    elsewhere = ((0, 32, 32, 64), outputs_of([0.9], [block(4, 4, 12, 12)]))
    teacher = make(fixed(tau=0.1), nms_threshold=1.0)
    target = labels_with_crops(teacher, whole, [(CROP, same), (CROP, half), elsewhere])
    by_area = {int(mask.sum()): score for mask, score in zip(target["masks"], target["scores"].tolist())}
    left = target["masks"][:, :, :32].flatten(1).any(1)
    assert left.tolist().count(True) == 3
    scores = sorted(target["scores"][left].tolist())
    wanted = [(0.8 + 0.9 / 2 + 0.6 / 2) / 3, (0.6 + 0.9 + 0.8 / 2) / 3, (0.9 + 0.6 + 0.8 / 2) / 3]
    assert scores == pytest.approx(sorted(wanted), abs=0.03), by_area
    assert target["scores"][~left].tolist() == pytest.approx([0.45], abs=0.01)  # not found in the whole image


def test_masks_cut_by_their_crop_are_dropped_but_not_at_a_side_of_the_image():
    # at the left and top sides, which are the image's; at the right side, which is inside it; away from all sides
    masks = [block(0, 0, 4, 4), block(6, 13, 10, 16), block(6, 6, 10, 10)]
    teacher = make(fixed(tau=0.3))
    target = labels_with_crops(teacher, nothing(), [(CROP, outputs_of([0.9, 0.8, 0.7], masks))])
    assert target["scores"].tolist() == pytest.approx([0.45, 0.35], abs=0.02)
    everything = labels_with_crops(
        make(fixed(tau=0.3), crop_margin=0), nothing(), [(CROP, outputs_of([0.9, 0.8, 0.7], masks))]
    )
    assert len(everything["scores"]) == 3
    # the lower half of the crop is padding, where masks are cut
    low = [((32, 0, 64, 32), outputs_of([0.9], [block(2, 4, 16, 8)]))]
    (mask,) = labels_with_crops(teacher, nothing(), low)["masks"]
    assert mask[40:48].any() and not mask[48:].any()


def test_ancestors_between_looks_need_coverage_and_within_a_look_the_head():
    yes, no = torch.tensor([[9.0]]), torch.tensor([[-9.0]])
    one = torch.ones(1, 1)
    whole = outputs_of([0.9], [block(2, 2, 8, 8)], sides=(one, one))  # pixels 8..32
    inside = [block(6, 6, 10, 10), block(7, 7, 9, 9)]  # pixels 12..20 and 14..18 by the crop
    for verdict, expected in ((yes, [[0, 1, 1], [0, 0, 1], [0, 0, 0]]), (no, [[0, 1, 1], [0, 0, 0], [0, 0, 0]])):
        sides = (verdict.expand(2, 1), torch.ones(2, 1))
        crop = ((0, 0, 34, 34), outputs_of([0.8, 0.6], inside, sides=sides))
        target = labels_with_crops(make(fixed(tau=0.2), min_area=4), whole, [crop])
        assert target["ancestors"].int().tolist() == expected


def test_without_masks_crops_change_nothing():
    sides = (torch.zeros(1, 1), torch.zeros(1, 1))
    target = labels_with_crops(make(), nothing(sides), [(CROP, nothing(sides))])
    assert len(target["labels"]) == 0 and target["masks"].shape == (0, *PADDED)
    assert target["image_weight"].item() == 0 and target["ancestors"].shape == (0, 0)


def test_config_sets_everything():
    cfg = get_cfg()
    add_sohes_config(cfg)
    cfg.CORRECTION.INITIAL_IOU_THRESHOLD = 0.6
    cfg.CORRECTION.MAX_LABELS = 11
    cfg.CORRECTION.MIN_AREA = 5
    cfg.CORRECTION.ANCESTORS = "coverage"
    cfg.CORRECTION.THRESHOLD.NAME = "top_k"
    cfg.CORRECTION.NMS_THRESHOLD = 0.85
    cfg.CORRECTION.REFINEMENT.RADIUS = 3
    cfg.CORRECTION.REFINEMENT.EPSILON = 0.5
    cfg.TEST.THETA_COVER = 0.95
    cfg.MODEL.ANCESTOR_HEAD.THRESHOLD = 0.4
    cfg.MODEL.ANCESTOR_HEAD.THETA_COVER = 0.3
    cfg.MODEL.ANCESTOR_HEAD.MAX_CHILD_AREA = 0.75
    cfg.TEST.CROPS.MARGIN = 3
    cfg.TEST.MASK_CHUNK_BYTES = 1000
    settings = vars(TeacherTargets.from_config(cfg))
    assert isinstance(settings.pop("threshold"), top_k)
    assert settings == {
        "initial_iou_threshold": 0.6,
        "nms_threshold": 0.85,
        "max_labels": 11,
        "min_area": 5,
        "ancestors": "coverage",
        "ancestor_threshold": 0.4,
        "theta_cover": 0.3,
        "theta_cover_alone": 0.95,
        "max_child_area": 0.75,
        "refinement_radius": 3,
        "refinement_epsilon": 0.5,
        "crop_margin": 3,
        "chunk_bytes": 1000,
    }


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="must be one of teacher, coverage, none; got 'both'"):
        make(ancestors="both")
    with pytest.raises(ValueError, match="MAX_LABELS must be at least 1"):
        make(max_labels=0)

"""Post-processing of queries: selection, sizes, scores, hierarchy."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from helpers import decoder_outputs
from helpers.decoder_outputs import entity_logits

import sohes_d2  # noqa: F401  (before detectron2)
from sohes_d2.modeling.inference import EntityInference, FoundMasks
from sohes_d2.structures.masks import encode_masks

SIZES = {"padded_size": (32, 32), "image_size": (24, 32), "output_size": (48, 64)}
block = functools.partial(decoder_outputs.block, inside=6.0, outside=-6.0, side=8)


def entities(inference, *arguments, **more):
    """The entities of an image from a single look."""
    return inference.combine([inference.find(*arguments, **more)], more["output_size"])


def test_best_masks_come_first_at_the_size_of_the_output():
    masks = torch.stack([block(0, 0, 2, 2), block(0, 0, 6, 8), block(2, 4, 4, 8)])
    out = entities(EntityInference(max_masks=2), entity_logits(0.3, 0.6, 0.9), masks, None, **SIZES)
    instances = out["instances"]
    assert instances.image_size == (48, 64)
    assert len(instances) == 2
    # a logit of 6 is a probability of 0.9975; interpolation at its border lowers the mean of the small mask
    assert instances.scores[1] == pytest.approx(0.6 * torch.tensor(6.0).sigmoid().item(), abs=5e-3)
    assert 0.8 < instances.scores[0] < 0.9
    # the input's 24 rows, 6 of the map, become all 48 rows of the output
    assert np.asarray(instances.pred_masks)[1].all()
    small = np.asarray(instances.pred_masks)[0]
    ys, xs = np.nonzero(small)
    assert (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1) == (16, 32, 32, 64)
    assert instances.pred_boxes.tensor.tolist() == [[32, 16, 64, 32], [0, 0, 64, 48]]
    assert instances.pred_classes.tolist() == [0, 0]
    assert out["forest"].masks == instances.pred_masks.rles
    assert out["forest"].scores.tolist() == instances.scores.tolist()
    assert out["forest"].parents.tolist() == [1, -1], "without predicted ancestors, coverage decides"
    assert "ancestor_probabilities" not in out


def test_an_uncertain_outline_lowers_the_score():
    masks = torch.stack([block(0, 0, 4, 4, inside=0.2), block(0, 4, 4, 8, inside=8.0)])
    out = entities(EntityInference(), entity_logits(0.9, 0.7), masks, None, **SIZES)
    assert out["instances"].pred_boxes.tensor[0].tolist()[0] >= 30, "the surer mask is first"
    assert out["instances"].scores[0] > 0.65 and out["instances"].scores[1] < 0.55


def test_empty_duplicate_and_weak_masks_are_dropped():
    masks = torch.stack([block(0, 0, 4, 4), torch.full((8, 8), -1.0), block(0, 0, 4, 4), block(4, 0, 6, 4)])
    logits = entity_logits(0.9, 0.95, 0.8, 0.1)
    assert len(entities(EntityInference(), logits, masks, None, **SIZES)["instances"]) == 3
    assert len(entities(EntityInference(nms_threshold=0.9), logits, masks, None, **SIZES)["instances"]) == 2
    best = entities(EntityInference(min_score=0.2), logits, masks, None, **SIZES)["instances"]
    assert best.scores.tolist() == sorted(best.scores.tolist(), reverse=True) and len(best) == 2
    none = entities(EntityInference(), logits[1:2], masks[1:2], None, **SIZES)
    assert len(none["instances"]) == 0 and len(none["forest"]) == 0
    assert np.asarray(none["instances"].pred_masks).shape == (0, 48, 64)


KNOTS = [[0, 0], [0.5, 0.1], [0.7, 0.6], [1, 0.9]]


def test_calibration_changes_scores_and_neither_order_nor_masks():
    masks = torch.randn(9, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    for iou in (1.0, 0.3):
        plain = entities(EntityInference(nms_threshold=iou), logits, masks, None, **SIZES)
        found = entities(EntityInference(nms_threshold=iou, calibration=KNOTS), logits, masks, None, **SIZES)
        expected = np.interp(plain["instances"].scores.numpy(), *np.transpose(KNOTS))
        np.testing.assert_allclose(found["instances"].scores.numpy(), expected, rtol=1e-6)
        assert found["instances"].scores.dtype == torch.float32
        assert found["forest"].scores.tolist() == found["instances"].scores.tolist()
        assert found["forest"].masks == plain["forest"].masks
        assert found["forest"].parents.tolist() == plain["forest"].parents.tolist()


def test_masks_of_equal_calibrated_score_keep_their_order():
    masks = torch.stack([block(0, 0, 4, 4), block(0, 4, 4, 8), block(4, 0, 6, 4)])
    logits = entity_logits(0.9, 0.900002, 0.900001)
    flat = [[0, 0], [0.5, 0.1], [1, 0.1000001]]
    plain, found = (entities(EntityInference(calibration=knots), logits, masks, None, **SIZES) for knots in ((), flat))
    assert len(set(plain["forest"].scores.tolist())) == 3 > len(set(found["forest"].scores.tolist()))
    assert found["forest"].masks == plain["forest"].masks


def test_min_score_applies_to_calibrated_scores():
    masks = torch.stack([block(0, 0, 4, 4), block(0, 4, 4, 8), block(4, 0, 6, 4)])
    logits = entity_logits(0.9, 0.75, 0.5)
    scores = entities(EntityInference(calibration=KNOTS), logits, masks, None, **SIZES)["instances"].scores
    for kept, score in enumerate(scores.tolist(), 1):
        found = entities(EntityInference(calibration=KNOTS, min_score=score), logits, masks, None, **SIZES)["instances"]
        assert found.scores.tolist() == scores[:kept].tolist()


def test_chunks_do_not_matter():
    masks = torch.randn(9, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    logits = torch.randn(9, 2, generator=torch.Generator().manual_seed(1))
    whole = entities(EntityInference(), logits, masks, None, **SIZES)["instances"]
    for chunk_bytes in (1, 3 * 4 * 3 * 48 * 64):
        chunked = entities(EntityInference(chunk_bytes=chunk_bytes), logits, masks, None, **SIZES)["instances"]
        assert chunked.pred_masks.rles == whole.pred_masks.rles
        assert torch.equal(chunked.scores, whole.scores)


@pytest.mark.parametrize("output_size", [(24, 32), (48, 64)])
def test_outlines_are_refined_to_edges_and_scores_are_unchanged(output_size):
    # on the map's grid of 4 pixels, the outline of the square is 2 pixels off on all sides
    masks, logits = block(1, 2, 4, 5)[None], entity_logits(0.9)
    photo = torch.full((3, 24, 32), 20.0)
    photo[:, 6:18, 10:22] = 220.0
    grow = output_size[0] // 24
    truth = np.zeros(output_size, bool)
    truth[6 * grow : 18 * grow, 10 * grow : 22 * grow] = True
    sizes = {**SIZES, "output_size": output_size}
    plain = entities(EntityInference(), logits, masks, None, **sizes)["instances"]
    refined = entities(EntityInference(refinement_radius=4), logits, masks, None, **sizes, photo=photo)["instances"]
    wrong = [int((np.asarray(some.pred_masks)[0] != truth).sum()) / grow**2 for some in (plain, refined)]
    assert wrong[0] > 80 and wrong[1] < 40, wrong
    assert refined.scores.tolist() == pytest.approx(plain.scores.tolist(), abs=2e-2)
    if output_size == (24, 32):
        assert refined.scores.tolist() == plain.scores.tolist()


def test_predicted_ancestors_follow_the_chosen_queries():
    masks = torch.stack([block(0, 0, 2, 2), torch.full((8, 8), -1.0), block(0, 0, 4, 4), block(0, 0, 6, 8)])
    # one dimension: logit [i, j] = up_i * down_j; query 3 is an ancestor of 0 and 2, and 2 of none
    up, down = torch.tensor([[-3.0], [9.0], [-3.0], [3.0]]), torch.tensor([[1.0], [1.0], [1.0], [1.0]])
    out = entities(EntityInference(), entity_logits(0.9, 0.9, 0.7, 0.5), masks, (up, down), **SIZES)
    expected = torch.tensor([[-3.0] * 3, [-3.0] * 3, [3.0] * 3]).sigmoid().fill_diagonal_(0)
    assert torch.allclose(out["ancestor_probabilities"], expected)
    assert out["forest"].parents.tolist() == [2, 2, -1]
    assert out["forest"].sources == ["model"] * 3
    # the masks are disjoint: an ancestor must cover its descendant, unless theta_cover is 0
    disjoint = torch.stack([block(0, 0, 2, 2), block(3, 3, 6, 8)])
    ancestors = (torch.tensor([[-3.0], [3.0]]), torch.ones(2, 1))
    out = entities(EntityInference(), entity_logits(0.9, 0.8), disjoint, ancestors, **SIZES)
    assert out["forest"].parents.tolist() == [-1, -1]
    out = entities(EntityInference(theta_cover=0), entity_logits(0.9, 0.8), disjoint, ancestors, **SIZES)
    assert out["forest"].parents.tolist() == [1, -1]


def test_masks_of_several_crops_form_one_forest():
    def found(entity, masks, sides=None):
        return EntityInference().find(entity_logits(*entity), torch.stack(masks), sides, **SIZES)

    def sides(ancestor_of_the_next):
        """Embeddings of two masks: the first is the ancestor of the second, or none of them is."""
        as_ancestor = torch.tensor([[9.0 if ancestor_of_the_next else -9.0], [-9.0]])
        return as_ancestor, torch.tensor([[1.0], [1.0]])

    whole = found((0.9, 0.8), [block(0, 0, 6, 8), block(0, 0, 3, 4)], sides(True))
    # a better outline of the second mask, and one that the first look missed
    closer = found((0.95, 0.7), [block(0, 0, 3, 4, inside=9.0), block(3, 6, 4, 7)], sides(False))
    out = EntityInference().combine([whole, closer], (48, 64), nms_threshold=0.7)
    scores = out["instances"].scores
    assert len(scores) == 3, "the worse of two equal masks is left out"
    boxes = out["instances"].pred_boxes.tensor.tolist()
    assert boxes[1] == [0, 0, 64, 48] and scores[0] == closer.scores[0]
    # within a look the ancestor head decides, between looks coverage: the whole covers both others
    assert out["forest"].parents.tolist() == [1, -1, 1]
    probabilities = out["ancestor_probabilities"]
    assert probabilities[1].tolist() == pytest.approx([1, 0, 1], abs=1e-4)
    assert probabilities[0, 2] < 0.01, "of one look, where the head says no"
    best = EntityInference(max_masks=1).combine([whole, closer], (48, 64), nms_threshold=0.7)
    assert len(best["instances"]) == 1 and best["instances"].scores[0] == closer.scores[0]


def test_masks_that_refinement_emptied_are_dropped():
    kept, emptied = np.zeros((2, 8, 8), bool)
    kept[2:5, 2:5] = True
    found = FoundMasks(encode_masks(np.stack([emptied, kept])), torch.tensor([0.9, 0.4]), None)
    out = EntityInference().combine([found], (8, 8))
    assert out["instances"].scores.tolist() == pytest.approx([0.4]) and out["forest"].areas.tolist() == [9]

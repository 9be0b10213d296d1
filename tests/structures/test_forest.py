"""The forest: who is inside whom, and that no operation loses it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sohes_d2.structures.forest import Forest, ForestError
from sohes_d2.structures.masks import coverage_matrix, encode_masks, mask_areas

SIZE = (20, 20)


def boxes(*corners: tuple[int, int, int, int]) -> list[dict]:
    masks = np.zeros((len(corners), *SIZE), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, corners):
        mask[y0:y1, x0:x1] = True
    return encode_masks(masks)


#            whole           part of 0       part of 1      part of 0         another whole
NESTED = [(0, 0, 16, 16), (1, 1, 9, 9), (2, 2, 5, 5), (10, 10, 15, 15), (17, 0, 20, 20)]


def nested(**fields) -> Forest:
    return Forest.from_masks(boxes(*NESTED), SIZE, **fields)


def test_hierarchy_from_masks():
    forest = nested()
    assert forest.parents.tolist() == [-1, 0, 1, 0, -1]
    assert forest.depths().tolist() == [0, 1, 2, 1, 0]
    assert forest.roots().tolist() == [0, 4]
    assert forest.children(0).tolist() == [1, 3]
    expected = np.zeros((5, 5), bool)
    expected[[0, 0, 0, 1], [1, 2, 3, 2]] = True
    assert np.array_equal(forest.ancestors(), expected)
    forest.check(theta_cover=0.9)


def test_inside_is_decided_by_coverage_and_not_the_reverse():
    # 9 of the 10 columns of the second lie in the first: coverage 0.9
    masks = boxes((0, 0, 10, 14), (0, 5, 5, 15))
    assert Forest.from_masks(masks, SIZE, theta_cover=0.9).parents.tolist() == [-1, 0]
    assert Forest.from_masks(masks, SIZE, theta_cover=0.91).parents.tolist() == [-1, -1]
    # near-equal masks cover each other: neither is the parent, and both are children of what holds both
    masks = boxes((0, 0, 10, 10), (0, 0, 10, 11), (0, 0, 20, 20))
    assert Forest.from_masks(masks, SIZE, theta_cover=0.9).parents.tolist() == [2, 2, -1]


def test_the_parent_is_the_smallest_of_those_that_cover():
    masks = boxes((2, 2, 5, 5), (0, 0, 20, 20), (0, 0, 8, 8), (0, 0, 12, 12))
    assert Forest.from_masks(masks, SIZE).parents.tolist() == [2, -1, 3, 1]


def test_random_masks_never_make_a_circle():
    generator = np.random.default_rng(0)
    for _ in range(20):
        masks = encode_masks(generator.random((12, 4, 4)) > generator.random((12, 1, 1)))
        forest = Forest.from_masks(masks, (4, 4), theta_cover=0.6)
        forest.check(theta_cover=0.6)
        ancestors = forest.ancestors()
        assert not (ancestors & ancestors.T).any()
        assert np.array_equal(ancestors, ancestors | (ancestors.astype(int) @ ancestors > 0))  # transitive


def test_probabilities_become_a_forest_without_circles():
    masks = boxes(*NESTED)
    everything = np.ones((5, 5))  # every pair both ways, and each with itself
    assert Forest.from_probabilities(masks, everything, SIZE).parents.tolist() == [-1, 0, 1, 0, -1]
    doubtful = everything.copy()
    doubtful[1, 2] = 0.4
    assert Forest.from_probabilities(masks, doubtful, SIZE).parents.tolist() == [-1, 0, 0, 0, -1]
    # without the masks' agreement the probabilities alone decide, still by area
    trusting = Forest.from_probabilities(masks, everything, SIZE, theta_cover=0)
    assert trusting.parents.tolist() == [-1, 0, 3, 4, 1]  # by falling area: 0, 1, 4, 3, 2
    with pytest.raises(ForestError, match="square matrix"):
        Forest.from_probabilities(masks, everything[:4], SIZE)


def test_subset_links_to_the_nearest_kept_ancestor():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5], levels=[4, 3, 2, 1, 0], sources=list("abcde"))
    kept = forest.subset(np.array([True, False, True, True, True]))
    assert kept.parents.tolist() == [-1, 0, 0, -1]
    assert kept.sources == ["a", "c", "d", "e"]
    assert kept.levels.tolist() == [4, 2, 1, 0]
    index = np.array([3, 2, 0])
    assert forest.subset(index).parents.tolist() == [2, 2, -1]
    assert np.array_equal(forest.subset(index).ancestors(), forest.ancestors()[np.ix_(index, index)])
    assert len(forest.subset([])) == 0
    with pytest.raises(ForestError, match="once"):
        forest.subset([0, 0])


def test_coco_round_trip_through_json():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5], levels=[4, 3, 2, 1, 0], sources=["global"] * 4 + ["local"])
    annotations = json.loads(json.dumps(forest.to_coco(image_id=7, first_id=70001)))
    assert [a["id"] for a in annotations] == [70001, 70002, 70003, 70004, 70005]
    assert [a["parent_id"] for a in annotations] == [0, 70001, 70002, 70001, 0]
    assert [a["depth"] for a in annotations] == [0, 1, 2, 1, 0]
    assert annotations[1]["area"] == 64
    assert annotations[1]["bbox"] == [1.0, 1.0, 8.0, 8.0]
    assert annotations[4]["source"] == "local"
    assert annotations[2]["score"] == 0.7
    back = Forest.from_coco(annotations, SIZE)
    assert back.masks == forest.masks
    for name in ("parents", "levels"):
        assert np.array_equal(getattr(back, name), getattr(forest, name))
    np.testing.assert_allclose(back.scores, forest.scores)


def test_coco_with_broken_links_is_refused():
    annotations = nested().to_coco(1)
    annotations[1]["parent_id"] = 99
    with pytest.raises(ForestError, match="parent 99"):
        Forest.from_coco(annotations, SIZE)
    annotations[1]["id"] = annotations[0]["id"]
    with pytest.raises(ForestError, match="share an id"):
        Forest.from_coco(annotations, SIZE)
    with pytest.raises(ForestError, match="positive"):
        nested().to_coco(1, first_id=0)


@pytest.mark.parametrize(
    ("parents", "scores", "message"),
    [
        ([1, 0, -1, -1, -1], None, "circle"),
        ([9, -1, -1, -1, -1], None, "outside"),
        ([-1, -1, -1, -1, -1], [0, 0, 2, 0, 0], "outside"),
        ([-1, -1, -1, -1, -1], [0, 0, float("nan"), 0, 0], "outside"),
        ([-1, 4, -1, -1, -1], None, "covered"),
    ],
)
def test_check_says_which_rule_is_broken(parents, scores, message):
    with pytest.raises(ForestError, match=message):
        Forest(boxes(*NESTED), parents, SIZE, scores=scores).check(theta_cover=0.9)


def test_check_finds_masks_of_another_size():
    with pytest.raises(ForestError, match="size"):
        Forest(boxes(*NESTED), [-1] * 5, (20, 21)).check()
    with pytest.raises(ForestError, match="5 masks but 4 parents"):
        Forest(boxes(*NESTED), [-1] * 4, SIZE)


def test_an_empty_forest_is_a_forest():
    forest = Forest.from_masks([], SIZE)
    assert len(forest) == 0
    assert forest.ancestors().shape == (0, 0)
    assert forest.to_coco(1) == []
    forest.check(theta_cover=0.9)


def test_parents_cover_children_as_the_matrix_says():
    forest = nested()
    coverage = coverage_matrix(forest.masks, forest.masks)
    assert all(coverage[k, parent] == 1 for k, parent in enumerate(forest.parents) if parent >= 0)


def test_the_likeliest_chain_wins_over_the_smallest_ancestor():
    """A stray mask that is hardly predicted to be above must not cut a mask off from the ancestors it surely has."""
    height, width = SIZE
    whole, part, stray, inner = (np.zeros(SIZE, bool) for _ in range(4))
    whole[: height // 2] = True
    part[: height // 2, : width // 2] = True
    stray[:4, : width // 2 - 2], stray[height - 3 :] = True, True  # mostly outside of the whole
    inner[:2, :3] = True
    masks = encode_masks(np.stack([whole, part, stray, inner]))
    probabilities = np.zeros((4, 4))
    probabilities[0, 1] = probabilities[0, 3] = probabilities[1, 3] = 0.9
    probabilities[2, 3] = 0.6
    assert mask_areas(masks)[2] < mask_areas(masks)[1], "the stray one is the smallest candidate"
    assert Forest.from_probabilities(masks, probabilities, SIZE).parents.tolist() == [-1, 0, -1, 1]
    probabilities[:, 3] = [0, 0, 0.6, 0]
    assert Forest.from_probabilities(masks, probabilities, SIZE).parents.tolist() == [-1, 0, -1, 2]

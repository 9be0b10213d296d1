"""Annotations in all accepted forms, and invalid ones."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as mask_util

from sohes_d2.data.training.augmentation import sample_runs
from sohes_d2.data.training.labels import read_labels, stratified_order
from sohes_d2.errors import InputError
from sohes_d2.labels.schema import Problems
from sohes_d2.structures.masks import encode_masks, rle_to_json

SIZE = (20, 30)


def rectangle(y0, y1, x0, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def compressed(mask):
    return rle_to_json(encode_masks([mask])[0])


def uncompressed(mask):
    flat = np.concatenate([[False], mask.T.ravel()])
    borders = np.flatnonzero(np.diff(flat.astype(np.int8)))
    return {"size": list(SIZE), "counts": np.diff(np.concatenate([[0], borders, [mask.size]])).tolist()}


def decoded(labels):
    return [sample_runs(ends, SIZE[0], np.arange(SIZE[0]), np.arange(SIZE[1])) for ends in labels.run_ends]


def test_every_form_of_mask():
    mask = rectangle(4, 11, 5, 25)
    polygon = [[5, 4, 25, 4, 25, 11, 5, 11]]
    labels = read_labels([{"segmentation": s} for s in (compressed(mask), uncompressed(mask), polygon)], SIZE)
    assert all(np.array_equal(found, mask) for found in decoded(labels))
    assert labels.areas.tolist() == [140] * 3
    assert labels.boxes.tolist() == [[5, 4, 20, 7]] * 3
    two_parts = read_labels([{"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 14, 10, 14, 14, 10, 14]]}], SIZE)
    assert two_parts.areas.tolist() == [32] and two_parts.boxes.tolist() == [[0, 0, 14, 14]]


def test_skipped_annotations_and_remaining_ancestors():
    """A chain of four masks, the second a crowd and the third with a low score, and an empty mask."""
    annotations = [
        {"id": 7, "segmentation": compressed(rectangle(0, 20, 0, 30)), "score": 0.9},
        {"id": 3, "parent_id": 7, "segmentation": uncompressed(rectangle(0, 15, 0, 15)), "iscrowd": 1},
        {"id": 9, "parent_id": 3, "segmentation": compressed(rectangle(0, 10, 0, 10)), "score": 0.2},
        {"id": 4, "parent_id": 9, "segmentation": compressed(rectangle(0, 5, 0, 5)), "score": 0.5},
        {"id": 5, "parent_id": 0, "segmentation": compressed(rectangle(0, 0, 0, 0))},
    ]
    labels = read_labels(annotations, SIZE, min_score=0.5)
    assert labels.areas.tolist() == [600, 25]
    assert labels.ancestors.tolist() == [[False, True], [False, False]]


def test_no_annotations():
    labels = read_labels([], SIZE)
    assert labels.boxes.shape == (0, 4) and labels.ancestors.shape == (0, 0) and labels.run_ends == []


GOOD = compressed(rectangle(4, 11, 5, 25))


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"id": 1}, "no segmentation"),
        ({"id": 1, "segmentation": []}, "no segmentation"),  # a box without a mask
        ({"id": 1, "segmentation": [[1, 1, 5, 5]]}, "polygon"),  # pycocotools reads it as a box
        ({"id": 1, "segmentation": {**GOOD, "size": [30, 20]}}, "size of the RLE"),
        ({"id": 1, "segmentation": {**GOOD, "counts": GOOD["counts"][:-1]}}, "runs of the RLE"),
        ({"id": 1, "segmentation": {"size": list(SIZE), "counts": ["a"]}}, "counts of the RLE"),
        ({"id": [1], "segmentation": GOOD}, "wrong id"),
        ({"id": 1, "segmentation": GOOD, "iscrowd": 5}, "wrong iscrowd"),
        (3, "no annotation"),
    ],
)
def test_an_invalid_annotation_is_skipped_alone(annotation, reason):
    problems = Problems()
    labels = read_labels([annotation, {"id": 2, "segmentation": GOOD}], SIZE, problems=problems, where="a.jpg")
    assert labels.areas.tolist() == [140]
    assert problems.counts == {reason: 1} and problems.items[0].startswith("a.jpg")


def test_children_of_an_invalid_annotation_move_to_the_next_ancestor():
    chain = [{"id": k, "parent_id": k - 1, "segmentation": GOOD} for k in (1, 2, 3)]
    chain[1]["segmentation"] = [[1, 1, 5, 5]]
    assert read_labels(chain, SIZE).ancestors.tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize(
    ("parents", "reason"), [((5, 0), "missing parent"), ((2, 1), "cycle of parents"), ((1, 0), "cycle of parents")]
)
def test_invalid_parents_give_wholes(parents, reason):
    problems = Problems()
    annotations = [{"id": k + 1, "parent_id": p, "segmentation": GOOD} for k, p in enumerate(parents)]
    assert not read_labels(annotations, SIZE, problems=problems).ancestors.any()
    assert problems.counts == {reason: 1}


def test_ambiguous_ids_are_refused_and_others_ignored():
    twice = [{"id": 1, "segmentation": GOOD}, {"id": 1, "segmentation": GOOD}]
    assert read_labels(twice, SIZE).areas.tolist() == [140, 140]
    with pytest.raises(InputError, match="two annotations have the id 1"):
        read_labels([*twice, {"id": 2, "parent_id": 1, "segmentation": GOOD}], SIZE)


def test_the_helper_for_uncompressed_counts_is_right():
    mask = rectangle(0, 20, 3, 5)
    assert np.array_equal(mask_util.decode(mask_util.frPyObjects(uncompressed(mask), *SIZE)), mask)


# 900 small, 90 medium, 10 large
AREAS = np.concatenate([np.full(900, 20), np.full(90, 1000), np.full(10, 50000)])
SIZE_OF_EACH = np.repeat([0, 1, 2], [900, 90, 10])


def test_the_order_is_a_permutation_determined_by_the_seed():
    order = stratified_order(AREAS, np.random.default_rng(0))
    assert sorted(order) == list(range(1000))
    assert np.array_equal(order, stratified_order(AREAS, np.random.default_rng(0)))
    assert not np.array_equal(order, stratified_order(AREAS, np.random.default_rng(1)))
    assert stratified_order(np.zeros(0), np.random.default_rng(0)).shape == (0,)


def test_every_prefix_is_balanced_over_sizes():
    order = stratified_order(AREAS, np.random.default_rng(0))
    for k in (3, 15, 30):
        assert np.bincount(SIZE_OF_EACH[order[:k]], minlength=3).tolist() == [k // 3] * 3
    # all ten large ones are included; the other sizes share the rest
    assert np.bincount(SIZE_OF_EACH[order[:100]]).tolist() == [45, 45, 10]
    assert np.bincount(SIZE_OF_EACH[order[:200]]).tolist() == [100, 90, 10]


def test_within_a_size_all_are_equally_likely():
    counts = np.zeros(1000)
    for seed in range(300):
        counts[stratified_order(AREAS, np.random.default_rng(seed))[:100]] += 1
    assert (counts[-10:] == 300).all()
    # expected: 300 * 45 / 900 and 300 * 45 / 90, within 5 standard deviations of a binomial
    assert abs(counts[:900].mean() - 15) < 1e-9 and counts[:900].max() < 15 + 5 * np.sqrt(15)
    assert abs(counts[900:990].mean() - 150) < 1e-9 and abs(counts[900:990] - 150).max() < 5 * np.sqrt(75)


def test_sizes_are_lengths_that_double():
    areas = np.array([4, 7, 15.9, 16, 63])  # two bins: [4, 16) and [16, 64)
    for seed in range(10):
        first = stratified_order(areas, np.random.default_rng(seed))[:2]
        assert (areas[first] < 16).sum() == 1

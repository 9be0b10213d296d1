"""The forest: hierarchy from coverage and probabilities, and operations that preserve it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.forest_checks import check_coverage

from sohes_d2.errors import InputError
from sohes_d2.structures.forest import Forest
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
    check_coverage(forest, 0.9)


def test_inside_needs_coverage_in_one_direction():
    # 9 of the 10 columns of the second lie in the first: coverage 0.9
    masks = boxes((0, 0, 10, 14), (0, 5, 5, 15))
    assert Forest.from_masks(masks, SIZE, theta_cover=0.9).parents.tolist() == [-1, 0]
    assert Forest.from_masks(masks, SIZE, theta_cover=0.91).parents.tolist() == [-1, -1]
    # near-equal masks cover each other: neither is the parent, and both are children of the mask that covers both
    masks = boxes((0, 0, 10, 10), (0, 0, 10, 11), (0, 0, 20, 20))
    assert Forest.from_masks(masks, SIZE, theta_cover=0.9).parents.tolist() == [2, 2, -1]


def test_the_parent_is_the_smallest_of_those_that_cover():
    masks = boxes((2, 2, 5, 5), (0, 0, 20, 20), (0, 0, 8, 8), (0, 0, 12, 12))
    assert Forest.from_masks(masks, SIZE).parents.tolist() == [2, -1, 3, 1]


def test_random_masks_never_make_a_cycle():
    generator = np.random.default_rng(0)
    for _ in range(20):
        masks = encode_masks(generator.random((12, 4, 4)) > generator.random((12, 1, 1)))
        forest = Forest.from_masks(masks, (4, 4), theta_cover=0.6)
        check_coverage(forest, 0.6)
        ancestors = forest.ancestors()
        assert not (ancestors & ancestors.T).any()
        assert np.array_equal(ancestors, ancestors | (ancestors.astype(int) @ ancestors > 0))  # transitive


def test_probabilities_become_a_forest_without_cycles():
    masks = boxes(*NESTED)
    everything = np.ones((5, 5))  # every pair both ways, and each with itself
    assert Forest.from_probabilities(masks, everything, SIZE).parents.tolist() == [-1, 0, 1, 0, -1]
    doubtful = everything.copy()
    doubtful[1, 2] = 0.4
    assert Forest.from_probabilities(masks, doubtful, SIZE).parents.tolist() == [-1, 0, 0, 0, -1]
    # with theta_cover = 0 the probabilities alone decide, still in order of area
    trusting = Forest.from_probabilities(masks, everything, SIZE, theta_cover=0)
    assert trusting.parents.tolist() == [-1, 0, 3, 4, 1]  # by descending area: 0, 1, 4, 3, 2
    with pytest.raises(InputError, match="square matrix"):
        Forest.from_probabilities(masks, everything[:4], SIZE)


def test_subset_links_to_the_nearest_kept_ancestor():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.512346], levels=[4, 3, 2, 1, 0], sources=list("abcde"))
    kept = forest.subset(np.array([True, False, True, True, True]))
    assert kept.parents.tolist() == [-1, 0, 0, -1]
    assert kept.sources == ["a", "c", "d", "e"]
    assert kept.levels.tolist() == [4, 2, 1, 0]
    index = np.array([3, 2, 0])
    assert forest.subset(index).parents.tolist() == [2, 2, -1]
    assert np.array_equal(forest.subset(index).ancestors(), forest.ancestors()[np.ix_(index, index)])
    assert len(forest.subset([])) == 0
    with pytest.raises(InputError, match="once"):
        forest.subset([0, 0])


def test_coco_round_trip_through_json():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.512346], levels=[4, 3, 2, 1, 0], sources=["global"] * 4 + ["local"])
    annotations = json.loads(json.dumps(forest.to_coco(image_id=7, first_id=70001)))
    assert [a["id"] for a in annotations] == [70001, 70002, 70003, 70004, 70005]
    assert [a["parent_id"] for a in annotations] == [0, 70001, 70002, 70001, 0]
    assert [a["depth"] for a in annotations] == [0, 1, 2, 1, 0]
    assert annotations[1]["area"] == 64
    assert annotations[1]["bbox"] == [1.0, 1.0, 8.0, 8.0]
    assert annotations[4]["source"] == "local"
    assert (annotations[2]["score"], annotations[4]["score"]) == (0.7, 0.512346)
    back = Forest.from_coco(annotations, SIZE)
    assert back.masks == forest.masks
    for name in ("parents", "levels"):
        assert np.array_equal(getattr(back, name), getattr(forest, name))
    np.testing.assert_allclose(back.scores, forest.scores)


def test_coco_with_broken_links_is_refused():
    annotations = nested().to_coco(1)
    annotations[1]["parent_id"] = 99
    with pytest.raises(InputError, match="parent 99"):
        Forest.from_coco(annotations, SIZE)
    annotations[1]["id"] = annotations[0]["id"]
    with pytest.raises(InputError, match="share an id"):
        Forest.from_coco(annotations, SIZE)
    with pytest.raises(InputError, match="positive"):
        nested().to_coco(1, first_id=0)


@pytest.mark.parametrize(
    ("parents", "scores", "message"),
    [
        ([1, 0, -1, -1, -1], None, "cycle"),
        ([9, -1, -1, -1, -1], None, "outside"),
        ([-1, -1, -1, -1, -1], [0, 0, 2, 0, 0], "outside"),
        ([-1, -1, -1, -1, -1], [0, 0, float("nan"), 0, 0], "outside"),
    ],
)
def test_check_names_the_broken_rule(parents, scores, message):
    with pytest.raises(ValueError, match=message):
        Forest(boxes(*NESTED), parents, SIZE, scores=scores).check()


def test_check_finds_masks_of_another_size():
    with pytest.raises(InputError, match="size"):
        Forest(boxes(*NESTED), [-1] * 5, (20, 21)).check()
    with pytest.raises(InputError, match="5 masks but 4 parents"):
        Forest(boxes(*NESTED), [-1] * 4, SIZE)


def test_an_empty_forest_is_a_forest():
    forest = Forest.from_masks([], SIZE)
    assert len(forest) == 0
    assert forest.ancestors().shape == (0, 0)
    assert forest.to_coco(1) == []
    forest.check()


def test_parents_cover_children_as_the_matrix_says():
    forest = nested()
    coverage = coverage_matrix(forest.masks, forest.masks)
    assert all(coverage[k, parent] == 1 for k, parent in enumerate(forest.parents) if parent >= 0)


def test_the_likeliest_chain_wins_over_the_smallest_ancestor():
    """A stray mask with a low ancestor probability must not separate a mask from its probable ancestors."""
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


def test_entities_by_index_and_name():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5], sources=list("abcde"))
    assert [entity.name for entity in forest] == ["1", "1.1", "1.1.1", "1.2", "2"], "larger ones first"
    assert forest.names == [entity.name for entity in forest]
    part = forest["1.1"]
    assert part == forest[1] == forest[-4] and part != forest[0]
    assert (part.area, part.box, part.depth, part.source) == (64, (1, 1, 8, 8), 1, "b")
    assert part.score == pytest.approx(0.8)
    assert part.parent == forest[0] and forest[0].parent is None
    assert [child.name for child in forest[0].children] == ["1.1", "1.2"]
    assert [entity.name for entity in forest["1.1.1"].chain] == ["1", "1.1", "1.1.1"]
    assert part.mask.dtype == bool and part.mask.sum() == 64 and part.mask[1:9, 1:9].all()
    assert [entity.name for entity in forest[1:3]] == ["1.1", "1.1.1"]
    assert [entity.name for entity in forest.wholes] == ["1", "2"]
    assert len({forest[0], forest[0], forest[1]}) == 2
    with pytest.raises(IndexError):
        forest[5]
    with pytest.raises(KeyError, match="3.1"):
        forest["3.1"]


def test_masks_at_a_point():
    forest = nested()
    assert [e.name for e in forest.at(3, 4)] == ["1", "1.1", "1.1.1"]
    assert [e.name for e in forest.at(15.9, 0.2)] == ["1"]
    assert forest.at(19, 0) == []
    for point in ((-1, 3), (3, 20), (20, 3)):
        with pytest.raises(ValueError, match="outside"):
            forest.at(*point)
    assert Forest.from_masks([], SIZE).at(0, 0) == []


def test_masks_in_a_box():
    forest = nested()
    assert [e.name for e in forest.in_box((0, 0, 10, 10))] == ["1.1", "1.1.1"]
    assert [e.name for e in forest.in_box((0, 0, 17, 17))] == ["1", "1.1", "1.1.1"]
    assert [e.name for e in forest.in_box((9.6, 9.7, 6, 6))] == ["1.2"]
    assert forest.in_box((18, 0, 2, 3)) == []
    with pytest.raises(ValueError, match="no pixel"):
        forest.in_box((25, 0, 2, 3))
    with pytest.raises(ValueError):
        forest.in_box((0, 0, 2))


def test_filter():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5])
    assert forest.filter(min_score=0.65).parents.tolist() == [-1, 0, 1]
    assert forest.filter(max_depth=1).parents.tolist() == [-1, 0, 0, -1]
    assert forest.filter(min_area=20, max_area=70).parents.tolist() == [-1, -1, -1]
    assert forest.filter(keep=lambda entity: entity.box[0] > 0).names == ["1", "1.1", "2"]
    assert forest.filter().parents.tolist() == forest.parents.tolist()


def test_selection_and_its_parts():
    forest = nested(scores=[0.5, 0.8, 0.7, 0.6, 0.9])
    assert forest.select(1).areas.tolist() == [60]
    two = forest.select(2)
    assert (two.areas.tolist(), two.parents.tolist()) == ([60, 64], [-1, -1])
    assert sorted(forest.select(10).areas.tolist()) == [9, 25, 60] or len(forest.select(10)) == 3
    assert len(forest.select(0)) == 0 and len(Forest.from_masks([], SIZE).select(3)) == 0
    parts = forest.select(2, parts=True)
    assert (parts.areas.tolist(), parts.parents.tolist()) == ([60, 64, 9], [-1, -1, 1])
    with pytest.raises(ValueError, match="at least 0"):
        forest.select(-1)


def test_collapse_keeps_fields():
    forest = Forest.from_masks(
        boxes((0, 0, 20, 20), (0, 0, 20, 17), (2, 2, 8, 8), (10, 2, 18, 8)),
        SIZE,
        scores=[0.2, 0.9, 0.5, 0.4],
        levels=[3, 2, 1, 0],
        sources=list("abcd"),
        file_name="a.png",
    )
    assert forest.parents.tolist() == [-1, 0, 1, 1]
    collapsed = forest.collapse()
    assert (collapsed.sources, collapsed.parents.tolist()) == (["b", "c", "d"], [-1, 0, 0])
    assert (collapsed.levels.tolist(), collapsed.file_name) == ([2, 1, 0], "a.png")


def test_arrays_and_sam_dicts():
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5])
    masks = forest.to_numpy()
    assert masks.shape == (5, *SIZE) and masks.dtype == bool and masks.sum(axis=(1, 2)).tolist() == [256, 64, 9, 25, 60]
    assert Forest.from_masks([], SIZE).to_numpy().shape == (0, *SIZE)
    records = forest.to_sam()
    assert [r["area"] for r in records] == [256, 64, 60, 25, 9]
    record = records[1]
    assert sorted(record) == sorted(
        ["segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"]
    )
    assert record["bbox"] == [1, 1, 8, 8] and record["crop_box"] == [0, 0, 20, 20]
    assert np.array_equal(record["segmentation"], masks[1])
    assert record["predicted_iou"] == pytest.approx(0.8)
    ((x, y),) = record["point_coords"]
    assert record["segmentation"][int(y), int(x)]
    json.dumps({**record, "segmentation": None})


def test_table():
    pytest.importorskip("pandas")
    table = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5]).to_pandas()
    assert table.index.tolist() == ["1", "1.1", "1.1.1", "1.2", "2"]
    assert table.loc["1.1.1", ["parent", "depth", "area", "x", "width"]].tolist() == ["1.1", 2, 9, 2, 3]
    assert table["parent"].isna().tolist() == [True, False, False, False, True]


def test_detections():
    supervision = pytest.importorskip("supervision")
    found = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.5]).to_supervision()
    assert isinstance(found, supervision.Detections) and len(found) == 5
    assert found.xyxy[1].tolist() == [1, 1, 9, 9]
    assert found[found.data["depth"] == 0].data["name"].tolist() == ["1", "2"]


def test_missing_libraries_are_reported(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        nested().to_pandas()


def test_pictures():
    photo = np.full((*SIZE, 3), 100, np.uint8)
    forest = nested()
    plain = np.asarray(forest.plot(photo, max_depth=0))
    assert plain.shape == (*SIZE, 3)
    assert (plain[0, 18] == 100).all() and (plain[5, 12] != 100).any()
    assert (plain[3, 3] == plain[12, 3]).all(), "parts are not drawn"
    assert (np.asarray(forest.plot(photo))[3, 3] != plain[3, 3]).any()
    assert (np.asarray(forest.plot())[0, 18] == 128).all()
    forest.photo = photo
    assert np.array_equal(np.asarray(forest.plot(max_depth=0)), plain)
    assert (np.asarray(forest.plot(names=True)) != np.asarray(forest.plot())).any()
    with pytest.raises(ValueError, match="the photo is"):
        forest.plot(photo[:10])
    page = forest._repr_html_()
    assert page.count("<tr>") == 6 and "data:image/png;base64," in page and "5 masks" in page


def test_save_and_load(tmp_path):
    forest = nested(scores=[0.9, 0.8, 0.7, 0.6, 0.512346], levels=[4, 3, 2, 1, 0], sources=list("abcde"))
    forest.file_name = "a.png"
    forest.save(tmp_path / "a.json")
    back = Forest.load(tmp_path / "a.json")
    assert (back.masks, back.image_size, back.file_name) == (forest.masks, SIZE, "a.png")
    assert back.parents.tolist() == forest.parents.tolist() and back.sources == forest.sources
    np.testing.assert_allclose(back.scores, forest.scores)
    good = json.loads((tmp_path / "a.json").read_text())
    first = good["annotations"][0]
    for broken in (
        {**good, "images": []},
        {**good, "annotations": [{**first, "segmentation": {"size": [20, 20], "counts": [1, -1, 400]}}]},
        {**good, "annotations": [{**first, "score": "high"}]},
        {**good, "annotations": [{**first, "parent_id": 1}]},
        {**good, "annotations": [{"id": 1}]},
        {**good, "annotations": 3},
        [],
    ):
        (tmp_path / "b.json").write_text(json.dumps(broken))
        with pytest.raises(InputError, match=r"b.json' is not a COCO json with one image"):
            Forest.load(tmp_path / "b.json")
    forest.scores[0] = np.nan
    with pytest.raises(ValueError, match="JSON|range"):
        forest.save(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text()) == good

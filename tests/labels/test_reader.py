"""Reading label files: common forms are normalized, invalid records reported, ambiguous files refused."""

from __future__ import annotations

import json

import pytest

from sohes_d2.errors import CorruptFileError, InputError, RecordError
from sohes_d2.labels.forests import read_forest
from sohes_d2.labels.reader import LabelFile, LabelStream, match_images, read_images, read_label_file
from sohes_d2.labels.schema import Problems, read_annotation, read_area, read_box, read_id, read_score

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def document(**changes):
    """Two images with one mask each; ``changes`` are of the first annotation, or of the first image (``image_...``)."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": SQUARE}
    image = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}
    for key, value in changes.items():
        owner, name = (image, key[6:]) if key.startswith("image_") and key != "image_id" else (annotation, key)
        owner[name] = value
    return {
        "images": [image, {"id": 2, "file_name": "b.jpg", "height": 20, "width": 30}],
        "annotations": [annotation, {"id": 2, "image_id": 2, "iscrowd": 0, "segmentation": SQUARE}],
    }


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "labels.json"
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_id": "1", "id": "1"}, {}),
        ({"image_id": 1.0, "id": 1.0}, {}),
        ({"image_height": "20", "image_width": "30.0"}, {}),
        ({"image_height": 20.0}, {}),
        ({"iscrowd": None}, {}),
        ({"iscrowd": False}, {}),
        ({"iscrowd": "0"}, {}),
        ({"iscrowd": True}, {"iscrowd": 1}),
        ({"iscrowd": "1"}, {"iscrowd": 1}),
        ({"ignore": 1}, {"iscrowd": 1}),
        ({"parent_id": None}, {"parent_id": 0}),
        ({"parent_id": "7"}, {"parent_id": 7}),
    ],
)
def test_common_forms_are_normalized(write, changes, expected):
    file = read_label_file(write(document(**changes)), strict=True)
    assert list(file.images) == [1, 2] and file.size(1) == (20, 30)
    annotation = file.by_image[1][0]
    assert {"id": 1, "image_id": 1, "iscrowd": 0, "category_id": 1, "segmentation": SQUARE, **expected} == annotation
    stream = LabelStream(write(document(**changes)))
    assert stream.images == list(file.images.values()) and stream.annotations(1) == [annotation]
    stream.close()


def test_a_byte_order_mark_and_names_by_url(write):
    content = document()
    content["images"][0] = {"id": 1, "coco_url": "http://x/val2017/7.jpg", "height": 20, "width": 30}
    path = write(b"\xef\xbb\xbf" + json.dumps(content).encode())
    assert read_label_file(path).images[1]["file_name"] == "7.jpg"
    assert [image["id"] for image in read_images(path)] == [1, 2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (document(image_id=2, image_file_name="b.jpg"), "1 and 2 are both 'b.jpg'"),
        (document(image_file_name="./b.jpg"), "1 and 2 are both"),
        (document(image_id=1, id=0, parent_id=0), "annotation id 0 together with parent_id"),
        ({**document(), "images": [{"id": 1}, {"id": "1"}]}, "two images have the id 1"),
        ({**document(), "images": [{"id": True}]}, "`id` must be"),
        ({**document(), "images": 5}, "'images' is not a list"),
        ({**document(), "annotations": {"a": 1}}, "'annotations' is not a list"),
        ({"annotations": []}, "no list 'images'"),
        (5, "expected '{'"),
        (b"", "empty"),
        (b"\x1f\x8b123", "gzip"),
        (json.dumps(document()).encode("utf-16"), "UTF-16"),
        (json.dumps(document()).encode()[:-30], "cut off"),
        (json.dumps(document()).encode() + b"{}", "continues"),
        (b'{"images": [' + b"[" * 100_000, "nested too deeply"),
        (b'{"images": [{"id": 1' + b"0" * 5000 + b"}]}", "damaged or cut off"),
        (b'{"images": [{"id": 1, "file_name": "\xff"}]}', "not UTF-8"),
    ],
)
def test_files_that_would_make_numbers_wrong_are_refused(write, content, message):
    path = write(content)
    for read in (read_label_file, LabelStream):
        with pytest.raises(InputError, match="labels.json") as error:
            read(path)
        assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"image_id": None}, "no image_id"),
        ({"image_id": [1]}, "wrong image_id"),
        ({"image_id": 9}, "no such image"),
        ({"id": 1.5}, "wrong id"),
        ({"id": True}, "wrong id"),
        ({"id": 2**70}, "wrong id"),
        ({"iscrowd": 2}, "wrong iscrowd"),
        ({"iscrowd": "maybe"}, "wrong iscrowd"),
        ({"parent_id": {}}, "wrong parent_id"),
    ],
)
def test_an_invalid_annotation_is_skipped_and_counted(write, changes, reason):
    path = write(document(**changes))
    file = read_label_file(path)
    assert [annotation["id"] for annotation in file.annotations] == [2] and file.problems.counts == {reason: 1}
    assert f"1 x {reason}" in file.problems.summary()
    with pytest.raises(InputError, match="labels.json: annotation"):
        read_label_file(path, strict=True)
    stream = LabelStream(path)
    assert stream.problems.counts == {reason: 1} and len(stream.annotations(2)) == 1
    stream.close()


def test_invalid_sizes_are_refused_on_use(write):
    for height in (0, -1, "x", None, 2.5, True, 10**6):
        file = read_label_file(write(document(image_height=height, image_width=10**6)))
        assert "height" not in file.images[1]
        with pytest.raises(InputError, match="'a.jpg' has no usable 'height'"):
            file.size(1)


def test_missing_or_repeated_ids_are_replaced_unless_they_are_parents(write):
    content = document()
    content["annotations"] = [
        {"image_id": 1, "id": 5, "segmentation": SQUARE},
        {"image_id": 1, "id": 5, "segmentation": SQUARE},
        {"image_id": 1, "segmentation": SQUARE, "parent_id": 7},
        {"image_id": 1, "id": 7, "segmentation": SQUARE, "parent_id": None},
        {"image_id": 2, "id": 5, "segmentation": SQUARE},  # allowed, since it is in another image
    ]
    file = read_label_file(write(content))
    assert [annotation["id"] for annotation in file.annotations] == [5, 8, 9, 7, 5]
    content["annotations"][2]["parent_id"] = 5
    with pytest.raises(InputError, match="image 1: two annotations have the id 5, which is a parent_id"):
        read_label_file(write(content))


def test_fields_are_validated_on_use():
    assert [read_id(v) for v in (7, "7", 7.0, " 7 ", "007", "a", "1" * 30)] == [7, 7, 7, 7, "007", "a", "1" * 30]
    annotation = read_annotation({"id": 1, "image_id": 1, "area": float("nan"), "bbox": [1, 2, 3], "score": "high"})
    for read in (read_area, read_box, read_score):
        with pytest.raises(RecordError):
            read(annotation)
    annotation = read_annotation({"id": 1, "image_id": 1, "area": None, "bbox": [], "note": "x"})
    assert (read_area(annotation), read_box(annotation), read_score(annotation)) == (None, None, 1.0)
    annotation = read_annotation({"id": 1, "image_id": 1, "area": "3.5", "bbox": [1, "2", 3, 4], "score": "0.5"})
    assert (read_area(annotation), read_box(annotation), read_score(annotation)) == (3.5, [1, 2, 3, 4], 0.5)
    for box in ([1, 2, -3, 4], [1, 2, float("inf"), 4], "1234", [1, 2, 3, None]):
        with pytest.raises(RecordError, match="x, y, width, height"):
            read_box({"bbox": box})


def test_a_file_changed_while_reading_is_refused(write):
    stream = LabelStream(write(document()))
    write(document(id=123456))
    with pytest.raises(CorruptFileError, match="was changed"):
        stream.annotations(2)
    stream.close()


def test_invalid_masks_are_skipped_and_ancestors_kept():
    chain = [{"id": k, "parent_id": k - 1, "iscrowd": 0, "segmentation": SQUARE} for k in range(1, 6)]
    chain[1]["segmentation"] = [[1, 1]]
    chain[2]["iscrowd"] = 1
    chain[3]["score"] = "high"
    chain[4]["parent_id"] = 99
    problems = Problems()
    forest, kept = read_forest(chain, (20, 30), problems, "a.jpg")
    assert kept == [0, 3, 4] and forest.parents.tolist() == [-1, 0, -1] and forest.scores.tolist() == [1, 0, 1]
    assert problems.counts == {"polygon": 1, "wrong score": 1, "missing parent": 1}
    assert len(problems) == 3 and "a.jpg, annotation 2: a polygon must be" in problems.items[0]


def match(names, others, *parts):
    files = (
        LabelFile(path, {i: {"id": i, "file_name": name} for i, name in side.items()})
        for path, side in (("a.json", names), ("b.json", others))
    )
    return match_images(*files, *parts)


def test_full_names_are_used_unless_last_parts_match_more():
    assert match({1: "a/x.jpg", 2: "y.jpg"}, {7: "y.jpg", 8: "a/x.jpg"}) == ({1: 8, 2: 7}, "name")
    assert match({1: "a/x.jpg", 2: "y.jpg"}, {7: "c\\b\\y.jpg", 8: "x.jpg"}) == ({1: 8, 2: 7}, "basename")
    assert match({1: "x.jpg"}, {7: "b/x.jpg"}, ("name",)) == ({1: None}, "name")


def test_repeated_names():
    # repeated last parts are not used, but full names are
    assert match({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "a/x.jpg", 8: "c.jpg"}) == ({1: 7, 2: None}, "name")
    for parts in (("name", "basename"), ("name",)):
        with pytest.raises(InputError, match="b.json: 'x.jpg' occurs twice"):
            match({1: "x.jpg"}, {7: "x.jpg", 8: "x.jpg"}, parts)
    with pytest.raises(InputError, match="a.json: 'x.jpg'"):
        match({1: "a/x.jpg", 2: "b/x.jpg"}, {7: "x.jpg"}, ("basename",))

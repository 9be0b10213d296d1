"""Shared code of the prepare scripts: reading large COCO jsons in chunks, and resumable conversion."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sohes_d2.data.benchmarks.conversion import (
    Entity,
    Item,
    Scene,
    annotation_records,
    coco_entity,
    convert,
)
from sohes_d2.errors import InputError
from sohes_d2.labels import scanner
from sohes_d2.labels.reader import LabelStream
from sohes_d2.labels.scanner import iterate_records
from sohes_d2.structures.masks import encode_masks

SIZE = (12, 16)


def rectangle(y0, x0, y1, x1):
    mask = np.zeros(SIZE, bool)
    mask[y0:y1, x0:x1] = True
    return encode_masks([mask])[0]


def coco_value(images=5, per_image=3):
    return {
        "info": {"year": 2020, "note": 'caf\u00e9 ["{\\'},
        "licenses": [1, 23, 456.5, -7e3],
        "annotations": [
            {"id": 100 * i + k, "image_id": i, "source": "\u00fc" * k, "segmentation": [[1, 2, 3.5, 4, 5, 6]]}
            for k in range(per_image)
            for i in reversed(range(images))
        ],
        "images": [{"id": i, "file_name": f"{i}\u00e9.jpg", "height": 4, "width": 5} for i in reversed(range(images))],
        "empty": [],
        "last": None,
    }


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("style", [{}, {"indent": 2, "ensure_ascii": False}, {"separators": (",", ":")}])
def test_records_do_not_depend_on_the_chunks(tmp_path, monkeypatch, chunk, style):
    monkeypatch.setattr(scanner, "_CHUNK", chunk)
    value = coco_value()
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, **style), encoding="utf-8")
    data = path.read_bytes()
    read = {}
    for key, _, offset, length, record in iterate_records(str(path)):
        if length:
            assert json.loads(data[offset : offset + length]) == record
            read.setdefault(key, []).append(record)
        else:
            read[key] = []
    assert {key: records if isinstance(value[key], list) else records[0] for key, records in read.items()} == value


def test_annotations_are_found_by_image(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(coco_value(), ensure_ascii=False), encoding="utf-8")
    file = LabelStream(str(path))
    assert [image["id"] for image in file.images] == [0, 1, 2, 3, 4]
    assert file.images[2]["file_name"] == "2\u00e9.jpg"
    assert [a["id"] for a in file.annotations(3)] == [300, 301, 302]
    assert file.annotations(3)[2]["source"] == "\u00fc\u00fc"
    assert file.annotations(17) == []
    file.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [], "annotations": [{"image_id": 1}', "cut off"),
        ('{"images": [], "annotations": [{"image_id": tru', "cut off"),
        ('{"images": []}', "no `annotations`"),
        ('{"images": [{"height": 2}], "annotations": []}', "has no valid 'id'"),
        ('{"images": [], "annotations": 3}', "'annotations' is not a list"),
        ('{"images": [], "images": []}', "the key 'images' occurs twice"),
        ('{"images": [], "annotations": []} x', "continues"),
        ("[1, 2]", "result list"),
        ("", "empty"),
    ],
)
def test_damaged_jsons_are_reported_with_the_position(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match="bad.json") as error:
        LabelStream(str(path))
    assert message in str(error.value)


def test_children_of_an_empty_entity_move_to_its_parent():
    empty = encode_masks([np.zeros(SIZE, bool)])[0]
    scene = Scene(
        SIZE,
        [
            Entity(rectangle(0, 0, 2, 2), parent=2, source_id=7),
            Entity(rectangle(0, 0, 8, 8), iscrowd=1, area=63.25, bbox=[0, 0, 8, 7.5]),
            Entity(empty, parent=1),
            Entity(None, parent=1),
        ],
    )
    records, dropped = annotation_records(scene, image_id=3, first_id=50)
    assert dropped == 2
    assert [(r["id"], r["parent_id"], r["depth"], r["area"], r["iscrowd"]) for r in records] == [
        (50, 51, 1, 4, 0),
        (51, 0, 0, 63.25, 1),
    ]
    assert records[0]["source_id"] == 7 and records[1]["bbox"] == [0, 0, 8, 7.5]
    assert annotation_records(Scene(SIZE), 1, 1) == ([], 0)


@pytest.mark.parametrize("parents", [[1, 0], [0], [5]])
def test_invalid_parents_are_refused(parents):
    scene = Scene(SIZE, [Entity(rectangle(0, 0, 2, 2), parent=parent) for parent in parents])
    with pytest.raises(ValueError, match="cycle|outside"):
        annotation_records(scene, 1, 1)


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[1, 1, 4, 4]],
        [[1, 1, 4, 4, 5]],
        {"size": [3, 3], "counts": "09"},
        {"size": list(SIZE), "counts": [0, 5]},
        {"size": list(SIZE), "counts": [0, 500]},
        {"size": list(SIZE), "counts": "0`o0"},
    ],
)
def test_an_invalid_segmentation_gives_no_mask(segmentation):
    assert coco_entity({"id": 1, "iscrowd": 0, "segmentation": segmentation}, SIZE).mask is None


def items(count):
    return [Item(10 + k, f"{k}.jpg", k) for k in range(count)]


def read(item):
    if item.source == 3:
        raise ValueError("this one is damaged")
    return Scene(SIZE, [Entity(rectangle(0, 0, 1 + k, 4), parent=k + 1 if k < 2 else -1) for k in range(3)])


def test_a_killed_run_continues_with_the_same_bytes(tmp_path):
    whole = tmp_path / "whole.json"
    summary = convert(str(whole), {"description": "x"}, items(80), read)
    assert (summary.images, summary.annotations, summary.skipped) == (79, 237, 1)
    assert summary.depths == {"0": 79, "1": 79, "2": 79}
    output = tmp_path / "parts.json"
    seen = []

    def stopping(item):
        seen.append(item.source)
        if item.source == 70:
            raise KeyboardInterrupt
        return read(item)

    with pytest.raises(KeyboardInterrupt):
        convert(str(output), {"description": "x"}, items(80), stopping)
    assert not output.exists()
    again = []
    convert(str(output), {"description": "x"}, items(80), lambda item: again.append(item.source) or read(item))
    assert again == list(range(64, 80))  # whole units of 32 images were kept
    assert output.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.json", "whole.json"]
    skipped = json.loads(whole.read_text())["skipped"]
    assert skipped == [{"id": 13, "file_name": "3.jpg", "reason": "ValueError: this one is damaged"}]


def test_another_configuration_does_not_continue_an_unfinished_run(tmp_path):
    output = tmp_path / "a.json"

    def stopping(item):
        if item.source == 40:
            raise KeyboardInterrupt
        return read(item)

    with pytest.raises(KeyboardInterrupt):
        convert(str(output), {"masks": "visible"}, items(50), stopping)
    again = []
    convert(str(output), {"masks": "amodal"}, items(50), lambda item: again.append(item.source) or read(item))
    assert len(again) == 50


def test_repeated_image_ids_are_refused(tmp_path):
    with pytest.raises(InputError, match="the same id"):
        convert(str(tmp_path / "a.json"), {}, items(2) + items(1), read)

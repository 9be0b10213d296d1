"""Third-party COCO files as training sets: an invalid annotation is skipped, but not its photo."""

import json
import logging

import pytest

from sohes_d2.data.loaders import _without_empty
from sohes_d2.data.registration import load_entities
from sohes_d2.data.training.labels import read_labels
from sohes_d2.errors import InputError

SQUARE = [[2, 2, 8, 2, 8, 8, 2, 8]]


def write(path, annotations, images=2, **size):
    records = [{"id": k + 1, "file_name": f"{k}.jpg", "height": 20, "width": 30, **size} for k in range(images)]
    path.write_text(json.dumps({"images": records, "annotations": annotations}))
    return str(path)


def test_a_box_without_mask_is_skipped_alone(tmp_path, caplog):
    annotations = [
        {"id": 1, "image_id": 1, "bbox": [0, 0, 5, 5], "segmentation": []},
        {"id": 1, "image_id": 1, "bbox": [0, 0, 5, 5], "segmentation": SQUARE},  # ids are used for parents only
        {"image_id": "1", "iscrowd": "0", "segmentation": SQUARE, "bbox": None, "area": None},
        {"id": 4, "image_id": 1, "ignore": 1, "segmentation": SQUARE},
        {"id": 5, "image_id": 2, "segmentation": [[1, 1, 1e9, 1e9, 5, 5]]},
        {"id": 6, "image_id": 3, "segmentation": SQUARE},
    ]
    path = write(tmp_path / "a.json", annotations)
    with caplog.at_level(logging.WARNING):
        records = load_entities(path, "photos")
    assert len(caplog.records) == 1
    for part in ("3 records", "1 x no segmentation", "1 x polygon far outside", "1 x no such image"):
        assert part in caplog.text
    assert [len(record["annotations"]) for record in records] == [4, 1]
    assert records[0]["file_name"] == "photos/0.jpg" and records[0]["image_id"] == 1
    assert len(read_labels(records[0]["annotations"], (20, 30)).areas) == 2
    assert ["bbox" in annotation for annotation in records[0]["annotations"]] == [True, True, False, False]
    # an image without usable labels is skipped, not used as an empty image
    assert _without_empty(records) == records[:1]


@pytest.mark.parametrize(
    ("annotations", "size", "message"),
    [
        ([], {"height": None}, "has no usable 'height'"),
        ([], {"file_name": ""}, "no usable file_name"),
        ([], {"file_name": "same.jpg"}, "keep one record per file"),
        ([{"id": 0, "image_id": 1, "parent_id": 0}], {}, "annotation id 0 together with parent_id"),
    ],
)
def test_files_that_would_train_wrong_labels_are_refused(tmp_path, annotations, size, message):
    with pytest.raises(InputError, match=message):
        load_entities(write(tmp_path / "a.json", annotations, **size), "photos")

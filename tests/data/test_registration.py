"""Folders of shards and label files as lazily read Detectron2 data sets, and third-party COCO files as training sets.

In a third-party file, an invalid annotation is skipped, but not its photo.
"""

from __future__ import annotations

import json
import logging
import pickle

import numpy as np
import pytest
from torch.utils.data import Subset

from sohes_d2.data.loaders import _without_empty
from sohes_d2.data.registration import LabelDataset, load_entities, register_datasets
from sohes_d2.data.training.labels import read_labels
from sohes_d2.errors import InputError
from sohes_d2.labels.index import is_label_file, remove_index, save_index, scan_label_file
from sohes_d2.labels.shards import merge_shards, shard_name, write_folder_index
from sohes_d2.labels.writer import SEPARATOR, dump_line, image_record, write_label_file
from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import encode_masks

from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.build import build_detection_test_loader
from detectron2.structures import BoxMode

SIZE = (12, 16)
COUNTS = [2, 0, 3, 1, 2]  # masks of images 1 to 5
PER_SHARD = 2


def forest(masks):
    shapes = np.zeros((masks, *SIZE), bool)
    for k in range(masks):
        shapes[k, : 10 - 2 * k, : 9 - 2 * k] = True  # nested
    return Forest(
        encode_masks(shapes), [k - 1 for k in range(masks)], SIZE, scores=[0.5 + 0.1 * k for k in range(masks)]
    )


def write_shard(folder, number, image_ids):
    images = [dump_line(image_record(i, f"{i % 2}/{i}.jpg", *SIZE)) for i in image_ids]
    annotations = [dump_line(a) for i in image_ids for a in forest(COUNTS[i - 1]).to_coco(i, i * 100 + 1)]
    sections = {"skipped": [], "images": [[SEPARATOR.join(images)]], "annotations": [[SEPARATOR.join(annotations)]]}
    path = str(folder / shard_name(number))
    write_label_file(path, {"config": 1}, sections)
    save_index(path, scan_label_file(path))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    for number, start in enumerate(range(1, 6, PER_SHARD)):
        write_shard(folder, number, range(start, min(start + PER_SHARD, 6)))
    write_folder_index(str(folder), {"images": 5, "images_per_shard": PER_SHARD, "shards": 3})
    return folder


@pytest.fixture
def register():
    """Register labels as "lazy_set"; Detectron2's catalogs are restored afterwards."""
    names = []

    def call(labels):
        names.extend(register_datasets({"lazy_set": f"{labels}, photos"}))
        return "lazy_set"

    yield call
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def identity(record):
    return record


def test_records_equal_those_of_a_loaded_file(folder, register, tmp_path):
    dataset = DatasetCatalog.get(register(folder))
    assert isinstance(dataset, LabelDataset) and len(dataset) == 5
    merged = str(tmp_path / "merged.json")
    merge_shards(str(folder), merged)
    assert list(dataset) == load_entities(merged, "photos")
    part = dataset[2]["annotations"][1]
    assert part["category_id"] == 0 and part["bbox_mode"] == BoxMode.XYWH_ABS
    assert (part["id"], part["parent_id"], part["depth"], part["score"]) == (302, 301, 1, 0.6)
    assert part["bbox"] == [0, 0, 7, 8] and part["segmentation"]["size"] == [12, 16]
    assert dataset[2]["file_name"] == "photos/1/3.jpg"
    assert dataset[1]["annotations"] == [] and dataset[-1]["image_id"] == 5
    with pytest.raises(IndexError):
        dataset[5]


def test_metadata_has_the_path_of_the_labels(folder, register):
    metadata = MetadataCatalog.get(register(folder))
    assert metadata.label_folder == str(folder) and metadata.get("json_file") is None
    assert metadata.thing_classes == ["entity"] and metadata.evaluator_type == "entity"


@pytest.mark.parametrize("indexed", [False, True])
def test_one_label_file(folder, register, tmp_path, indexed):
    merged = str(tmp_path / "merged.json")
    merge_shards(str(folder), merged)
    if not indexed:
        remove_index(merged)
    name = register(merged)
    assert MetadataCatalog.get(name).json_file == merged
    dataset = DatasetCatalog.get(name)
    assert isinstance(dataset, LabelDataset)
    assert list(dataset) == load_entities(merged, "photos")


@pytest.mark.parametrize(
    "text", ['{"info":{"a":1},"images":[],"annotations":[]}', '{"images": []}', '{"info":{},\n"im']
)
def test_other_coco_files_are_loaded(tmp_path, folder, text):
    (tmp_path / "other.json").write_text(text)
    assert not is_label_file(str(tmp_path / "other.json"))
    assert is_label_file(str(folder / shard_name(1)))


@pytest.mark.parametrize("workers", [0, 2])
def test_it_feeds_the_loaders_of_detectron2(folder, register, workers):
    name = register(folder)
    by_name = get_detection_dataset_dicts(name)
    assert len(by_name) == 5
    loader = build_detection_test_loader(by_name, mapper=identity, num_workers=workers)
    batches = list(loader)
    assert [record["image_id"] for batch in batches for record in batch] == [1, 2, 3, 4, 5]
    assert [len(record["annotations"]) for batch in batches for record in batch] == COUNTS
    train = build_detection_train_loader(
        dataset=DatasetCatalog.get(name), mapper=identity, total_batch_size=2, num_workers=workers
    )
    seen = {record["image_id"]: record for _, batch in zip(range(20), train) for record in batch}
    assert seen == {record["image_id"]: record for record in DatasetCatalog.get(name)}


def test_images_without_masks_are_skipped_by_the_index(folder, register):
    dataset = DatasetCatalog.get(register(folder))
    with_masks = Subset(dataset, np.flatnonzero(dataset.labels.rows["count"]))
    train = build_detection_train_loader(dataset=with_masks, mapper=identity, total_batch_size=1)
    assert {batch[0]["image_id"] for _, batch in zip(range(40), train)} == {1, 3, 4, 5}


def test_a_pickled_copy_is_small_and_reads(folder, register):
    dataset = DatasetCatalog.get(register(folder))
    dataset[0]
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    assert list(pickle.loads(data)) == list(dataset)


def test_missing_files_are_reported(folder, register, tmp_path):
    (folder / shard_name(1)).unlink()
    name = register(folder)
    with pytest.raises(InputError, match="shard_00001.json"):
        DatasetCatalog.get(name)
    register_datasets({"nothing_there": f"{tmp_path}/none, photos", "no_shards": f"{tmp_path}, photos"})
    try:
        with pytest.raises(InputError, match="none"):
            DatasetCatalog.get("nothing_there")
        with pytest.raises(InputError, match="no shard"):
            DatasetCatalog.get("no_shards")
    finally:
        for name in ("nothing_there", "no_shards"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


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

"""Built-in data sets: lazy registration, class-agnostic dicts with hierarchy, COCO jsons from yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sohes_d2.data.benchmarks.builtin import BUILTIN
from sohes_d2.data.registration import (
    PerImageDataset,
    register_builtin_datasets,
    register_datasets,
)
from sohes_d2.errors import ConfigError, InputError

from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

SQUARE = [[0, 0, 4, 0, 4, 4, 0, 4]]


@pytest.fixture(autouse=True)
def catalog():
    """Restore Detectron2's catalogs after each test."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_builtin_datasets()
    for name in set(BUILTIN) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def labels():
    part = {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0}
    return {
        "categories": [{"id": 1, "name": "entity"}],
        "images": [{"id": 1, "file_name": "a.jpg", "height": 8, "width": 9}],
        "annotations": [
            {**part, "id": 1, "parent_id": 0, "depth": 0, "segmentation": SQUARE},
            {**part, "parent_id": 1, "depth": 1, "score": 0.5, "segmentation": SQUARE},
        ],
    }


def test_the_table_has_every_benchmark_and_its_script(tmp_path):
    register_builtin_datasets(str(tmp_path))  # an empty folder: nothing is read
    for word in ("sa1b_test", "sa1b_train", "coco_2017", "lvis_v1", "coco_lvis", "ade20k_full", "ade20k_instance"):
        assert any(word in name for name in BUILTIN), word
    for word in ("entityseg", "partimagenet", "paco_lvis_v1", "pascal_part", "bsds500"):
        assert any(word in name for name in BUILTIN), word
    folder = Path(__file__).resolve().parents[3] / "datasets"
    for name, row in BUILTIN.items():
        assert name.startswith("entities_") and name in DatasetCatalog.list()
        assert (folder / row.prepare.split()[0]).is_file(), row.prepare
        metadata = MetadataCatalog.get(name)
        assert metadata.thing_classes == ["entity"] and metadata.evaluator_type == "entity"
        assert metadata.image_root == str(tmp_path / row.images)
        assert metadata.has_parents == row.has_parents


def test_a_data_set_is_read_on_access_with_its_hierarchy(tmp_path):
    register_builtin_datasets(str(tmp_path))
    write(tmp_path / BUILTIN["entities_paco_lvis_v1_test"].labels, labels())
    (record,) = DatasetCatalog.get("entities_paco_lvis_v1_test")
    assert record["file_name"] == str(tmp_path / "coco" / "a.jpg")
    assert (record["height"], record["width"], record["image_id"]) == (8, 9, 1)
    whole, part = record["annotations"]
    assert whole["category_id"] == part["category_id"] == 0
    assert (part["id"], part["parent_id"], part["depth"], part["score"]) == (2, 1, 1, 0.5)
    assert whole["parent_id"] == 0 and "score" not in whole
    assert MetadataCatalog.get("entities_paco_lvis_v1_test").thing_classes == ["entity"]


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "here"))
    register_builtin_datasets()
    assert MetadataCatalog.get("entities_bsds500_val").json_file == str(tmp_path / "here/entities/bsds500_val.json")


def test_a_missing_file_names_the_script(tmp_path):
    register_builtin_datasets(str(tmp_path))
    with pytest.raises(InputError, match="prepare_bsds500.py --split val"):
        DatasetCatalog.get("entities_bsds500_val")
    with pytest.raises(InputError, match="prepare_sa1b.py --train 1000"):
        DatasetCatalog.get("entities_sa1b_train_1000")


def test_sa1b_is_read_image_by_image(tmp_path):
    register_builtin_datasets(str(tmp_path))
    annotation = {"id": 7, "bbox": [0, 0, 4, 4], "area": 16, "segmentation": {"size": [8, 9], "counts": "04"}}
    value = {"image": {"image_id": 5, "height": 8, "width": 9}, "annotations": [annotation]}
    write(tmp_path / "sa1b" / "sa_000001" / "sa_5.json", value)
    (tmp_path / "entities").mkdir()
    (tmp_path / "entities" / "sa1b_train_1000.txt").write_text("sa_000001/sa_5.jpg\nsa_000001/sa_6.jpg\n\n")
    dataset = DatasetCatalog.get("entities_sa1b_train_1000")
    assert isinstance(dataset, PerImageDataset) and len(dataset) == 2
    record = dataset[0]
    assert record["file_name"] == str(tmp_path / "sa1b" / "sa_000001" / "sa_5.jpg")
    assert (record["height"], record["width"], record["image_id"]) == (8, 9, 5)
    assert record["annotations"][0]["category_id"] == 0
    assert record["annotations"][0]["segmentation"] == {"size": [8, 9], "counts": "04"}
    with pytest.raises(ValueError, match="sa_6.json"):
        dataset[1]
    write(tmp_path / "sa1b" / "sa_000001" / "sa_6.json", {"image": {}})
    with pytest.raises(ValueError, match="sa_6.json"):
        dataset[1]
    # Detectron2's loaders accept the data set
    assert get_detection_dataset_dicts("entities_sa1b_train_1000")[0]["image_id"] == 5


@pytest.mark.parametrize("form", ["text", "mapping"])
def test_any_coco_json_by_config(tmp_path, form):
    value = labels()
    value["categories"] = [{"id": 3, "name": "cat"}, {"id": 17, "name": "dog"}]
    value["annotations"][0]["category_id"], value["annotations"][1]["category_id"] = 3, 17
    json_file = write(tmp_path / "mine.json", value)
    line = f"my_set: {json_file}, {tmp_path}/photos"
    specs = line if form == "text" else {"my_set": {"json": str(json_file), "images": f"{tmp_path}/photos"}}
    assert register_datasets(specs) == ["my_set"]
    (record,) = DatasetCatalog.get("my_set")
    assert record["file_name"] == f"{tmp_path}/photos/a.jpg"
    assert [a["category_id"] for a in record["annotations"]] == [0, 0]
    assert MetadataCatalog.get("my_set").thing_classes == ["entity"]
    with pytest.raises(ConfigError, match="registered already"):
        register_datasets(specs)


@pytest.mark.parametrize("specs", ["just text", "my_set: a.json", "my_set: {json: a}", "a: [", "my_set: a, b, c"])
def test_an_invalid_description_shows_the_form(specs):
    with pytest.raises(ConfigError):
        register_datasets(specs)
    assert "my_set" not in DatasetCatalog.list()

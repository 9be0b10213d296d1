"""The generated labels of the loading benchmark are what a run would write, and its measurements count right."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sohes_d2.data.shard_index import index_path, load_index, scan_label_file
from sohes_d2.data.shards import ShardedDataset, merge_shards, shard_name
from sohes_d2.structures.forest import Forest

SPEC = importlib.util.spec_from_file_location(
    "benchmark_loading", Path(__file__).parents[2] / "tools" / "benchmark_loading.py"
)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "IMAGES_PER_SHARD", 20)
    benchmark.make_folder(str(tmp_path / "labels"), images=45, masks=7)
    return tmp_path / "labels"


def test_the_indices_are_those_of_a_scan(folder):
    for number, images in enumerate((20, 20, 5)):
        path = str(folder / shard_name(number))
        assert Path(index_path(path)).exists()
        index, scanned = load_index(path), scan_label_file(path)
        assert len(index.rows) == images and np.array_equal(index.rows, scanned.rows)
        assert np.array_equal(index.sections, scanned.sections) and index.stats == scanned.stats
    assert json.loads((folder / "index.json").read_text())["complete"]


def test_the_labels_are_forests(folder):
    dataset = ShardedDataset(str(folder))
    assert len(dataset) == 45
    ids = set()
    for record in dataset:
        assert {a["image_id"] for a in record["annotations"]} == {record["image"]["id"]}
        ids.update(a["id"] for a in record["annotations"])
        forest = Forest.from_coco(record["annotations"], (480, 640))
        forest.check()
        assert forest.parents.tolist() == [-1, 0, 1, -1, 3, 4, -1]
    assert len(ids) == 45 * 7


def test_a_folder_of_that_size_is_used_again(folder):
    before = (folder / shard_name(2)).stat().st_mtime_ns
    assert not benchmark.make_folder(str(folder), images=45, masks=7)
    assert (folder / shard_name(2)).stat().st_mtime_ns == before
    assert benchmark.make_folder(str(folder), images=25, masks=7)
    assert len(ShardedDataset(str(folder))) == 25


def test_the_measurements(folder, tmp_path):
    lazy = benchmark.measure_lazy(str(folder), accesses=10)
    assert lazy["images"] == 45 and 0 < lazy["open_s"] < 5
    for cache in ("cold", "warm"):
        assert 0 < lazy[f"{cache}_mean_ms"] <= lazy[f"{cache}_max_ms"]
        assert 0 < lazy[f"{cache}_p99_ms"] <= lazy[f"{cache}_max_ms"]
    assert lazy["rss_end"] >= lazy["rss"] > lazy["rss_added"] >= 0
    merged = str(tmp_path / "merged.json")
    merge_shards(str(folder), merged)
    assert benchmark.measure_lazy(merged, accesses=1)["images"] == 45
    assert benchmark.measure_loaded(merged, accesses=0)["images"] == 45

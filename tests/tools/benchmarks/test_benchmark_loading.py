"""The loading benchmark: its generated labels match those of a run, and its measurements are correct."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmarks import benchmark_loading as benchmark

from sohes_d2.labels.index import index_path, load_index, scan_label_file
from sohes_d2.labels.shards import ShardedDataset, merge_shards, shard_name
from sohes_d2.structures.forest import Forest


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


KINDS = [f"{kind}_{name}_ms" for kind in ("cold", "work", "plain", "warm") for name in ("mean", "p99", "max")]


@pytest.fixture
def no_clocks(monkeypatch):
    """Deterministic clocks and memory: each reading adds 1 s of wall time, 3 s of processor time or 1 byte."""
    ticks, pages = itertools.count(), itertools.count(1000)
    work = itertools.count(step=3)
    clocks = {"perf_counter": lambda: float(next(ticks)), "thread_time": lambda: float(next(work))}
    monkeypatch.setattr(benchmark, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(benchmark, "_memory", lambda field: next(pages))


def test_the_measurements(folder, tmp_path, no_clocks, monkeypatch):
    read = []
    plainly = benchmark._read_plainly
    monkeypatch.setattr(benchmark, "_read_plainly", lambda *args: read.append(plainly(*args)))
    lazy = benchmark.measure_lazy(str(folder), accesses=10)
    times = {kind: 3e3 if kind.startswith("work") else 1e3 for kind in KINDS}
    assert lazy == {"images": 45, "open_s": 1, "rss": 1001, "rss_added": 1, "rss_end": 1002, **times}
    annotations = [[a["image_id"] for a in json.loads(b"[" + data + b"]")] for data in read]
    assert len(annotations) == 10 and all(len(set(ids)) == 1 and len(ids) == 7 for ids in annotations)
    elsewhere = np.random.default_rng(0).integers(0, 45, (2, 10))[1]
    assert [ids[0] for ids in annotations] == (benchmark.FIRST_ID + elsewhere).tolist()
    merged = str(tmp_path / "merged.json")
    merge_shards(str(folder), merged)
    assert benchmark.measure_lazy(merged, accesses=1)["images"] == 45
    loaded = benchmark.measure_loaded(merged, accesses=0)
    assert loaded["images"] == 45 and set(loaded) == {"images", "open_s", "rss", "rss_added"}


def test_memory_that_shrinks_while_opening_counts_as_none_added(folder, monkeypatch):
    amounts = {"VmRSS": 5000, "VmHWM": 4000}
    monkeypatch.setattr(benchmark, "_memory", amounts.get)
    lazy = benchmark.measure_lazy(str(folder), accesses=1)
    assert (lazy["rss"], lazy["rss_added"], lazy["rss_end"]) == (4000, 0, 4000)


def result(**changes):
    return {
        "images": 3,
        "open_s": 1.0,
        "rss": 2**29,
        "rss_added": 2**20,
        "rss_end": 2**29,
        **dict.fromkeys(KINDS, 4.0),
    } | changes


@pytest.mark.parametrize(
    ("large", "code"),
    [
        (result(), 0),
        (result(cold_p99_ms=9.0, plain_p99_ms=9.0, warm_p99_ms=9.0), 0),  # due to the disk and other processes
        (result(cold_mean_ms=6.0), 1),
        (result(work_p99_ms=6.0), 1),
        (result(open_s=11.0), 1),
        (result(rss=2**30), 1),
    ],
)
def test_the_command_checks_the_targets(tmp_path, monkeypatch, capsys, large, code):
    asked = []

    def measured(measurement, path, accesses=0):
        asked.append((measurement, Path(path).name, path.endswith(".json") and Path(index_path(path)).exists()))
        return large if len(asked) == 1 else result()

    monkeypatch.setattr(benchmark, "_in_fresh_process", measured)
    assert benchmark.main([str(tmp_path), "--images", "3", "--small-images", "2", "--masks", "4"]) == code
    assert asked == [
        ("lazy", "large", False),
        ("lazy", "small", False),
        ("lazy", "small.json", True),
        ("lazy", "small.json", False),
        ("loaded", "small.json", False),
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"targets met: {code == 0}"
    assert [line.split(":")[0].strip() for line in lines if " p99 " in line] == [
        "2000 random accesses, cold",
        "processor time in these",
        "plain reads of as many bytes, in turns with these",
        "the same accesses, warm",
    ]
    assert not list(tmp_path.iterdir())  # without --keep nothing is left


def test_output_of_a_fresh_process(folder, capsys):
    assert benchmark.main([str(folder), "--measure", "lazy", "--accesses", "2"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["images"] == 45 and set(measured) == {*KINDS, "images", "open_s", "rss", "rss_added", "rss_end"}

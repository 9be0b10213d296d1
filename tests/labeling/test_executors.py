"""Executors: Ray gives the same bytes from the same work units; an image is skipped after two lost workers."""

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import fake_labeler
from helpers.fake_labeler import FakeFactory
from PIL import Image

from sohes_d2.data.sources import ImageItem, read_image_list
from sohes_d2.errors import InputError
from sohes_d2.labeling import executors
from sohes_d2.labeling.run import LabelingOptions, run_labeling
from sohes_d2.labeling.steps import UnitJob
from sohes_d2.labeling.units import WorkUnit
from sohes_d2.labeling.workers import SharedArrays, Task, TaskLost


@pytest.fixture
def photos(tmp_path):
    (tmp_path / "photos").mkdir()
    for k in range(12):
        pixels = np.random.default_rng(k).integers(0, 200, (10, 9, 3)).astype(np.uint8)
        if k == 5:
            pixels[0, 0] = fake_labeler.KILL_ONCE
        if k == 7:
            pixels[0, 0] = fake_labeler.FAIL_FINISH
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{k:02d}.png")
    return str(tmp_path / "photos")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, on this machine."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


def run(photos, output, factory, **options):
    options = LabelingOptions(**{"batch_size": 3, "images_per_shard": 5, **options})
    return run_labeling(read_image_list(photos), str(output), factory, options)


def check_same(output, reference):
    for path in sorted(reference.iterdir()):
        if path.name != "summary.json":
            assert (output / path.name).read_bytes() == path.read_bytes()


def test_a_killed_worker_loses_no_image(cluster, photos, tmp_path):
    marker = tmp_path / "marker"
    factory = FakeFactory(on_host=False, marker=str(marker))
    report = run(photos, tmp_path / "ray", factory, engine="ray", ray_address=cluster.address)
    assert marker.exists()  # a worker was killed
    assert report.summary["images"] == 11 and [e["file_name"] for e in report.skipped] == ["07.png"]
    run(photos, tmp_path / "local", factory)
    check_same(tmp_path / "ray", tmp_path / "local")


def test_an_image_that_kills_every_worker_is_listed(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(executors, "RAY_RETRIES", 1)
    for k in range(2):
        pixels = np.full((10, 9, 3), k, np.uint8)
        if k == 1:
            pixels[0, 0] = fake_labeler.KILL
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
    factory = FakeFactory(on_host=False)
    report = run(str(tmp_path), tmp_path / "out", factory, engine="ray", ray_address=cluster.address)
    assert report.exit_code == 3 and report.summary["images"] == 1
    errors = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert [(e["file_name"], e["reason"]) for e in errors] == [("1.png", "its worker process died every time")]


def test_a_lost_machine_loses_no_image(cluster, photos, tmp_path):
    (tmp_path / "marker").mkdir()  # the marker exists, so no worker kills itself
    factory = FakeFactory(seconds=0.3, marker=str(tmp_path / "marker"))
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    done_when_lost = []

    def lose_node():
        journal = tmp_path / "ray" / "shard_00000.partial.jsonl"
        while not journal.exists() or not journal.stat().st_size:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)
        done_when_lost.append((tmp_path / "ray" / "index.json").exists())

    thread = threading.Thread(target=lose_node, daemon=True)
    thread.start()
    report = run(photos, tmp_path / "ray", factory, engine="ray", ray_address=cluster.address)
    thread.join(timeout=30)
    assert done_when_lost == [False]
    assert report.summary["images"] == 11
    run(photos, tmp_path / "local", factory)
    check_same(tmp_path / "ray", tmp_path / "local")


def test_without_ray_the_error_gives_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'sohes_d2\[ray\]'"):
        next(executors.run_on_ray([], FakeFactory()))


def test_a_task_that_lost_two_processes_is_skipped_and_its_block_freed():
    item = ImageItem(1, "a.png", "a.png")
    job = UnitJob(WorkUnit(0, 0, (item,)))
    shared = SharedArrays.put([np.zeros((5, 7, 3), np.uint8)])
    submitted = []
    pipeline = executors._DevicePipeline.__new__(executors._DevicePipeline)
    pipeline._events, pipeline._pool = queue.Queue(), SimpleNamespace(submit=submitted.append)
    pipeline._shared = {(job.unit, 0): shared}
    task = Task((job, 0), None, (item, shared))
    for losses in (1, 2):
        task.losses = losses
        pipeline._events.put(TaskLost(task, -9))
        result = pipeline.step()
        if losses == 1:
            assert result is None
            with shared.opened():
                pass
    assert submitted == [task]
    assert "killed every time" in result.results[0].skipped["reason"]
    assert pipeline._shared == {}
    with pytest.raises(FileNotFoundError), shared.opened():
        pass

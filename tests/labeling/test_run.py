"""Labeling runs: the same bytes for any workers, shard jobs, kills and resumes; failing images are skipped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import fake_labeler
from helpers.fake_labeler import FakeFactory
from PIL import Image

from sohes_d2.data.sources import read_image_list
from sohes_d2.errors import FolderBusyError, InputError, SOHESError
from sohes_d2.labeling import run_folder
from sohes_d2.labeling.photo_states import from_array
from sohes_d2.labeling.run import LabelingOptions, run_labeling
from sohes_d2.labeling.run_folder import RunFolder
from sohes_d2.labeling.units import ShardLayout
from sohes_d2.labels.index import load_index, save_index
from sohes_d2.labels.journal import ShardJournal
from sohes_d2.labels.shards import ShardedDataset, merge_shards
from sohes_d2.labels.writer import dump_line
from sohes_d2.structures.files import FolderLock

REPORTS = ("summary",)


def write_image(path, size=(12, 10), seed=0, first=None):
    """A random png of (H, W) ``size``; ``first`` sets its first pixel, which can make the fake labeler fail."""
    pixels = np.random.default_rng(seed).integers(0, 200, (*size, 3)).astype(np.uint8)
    if first is not None:
        pixels[0, 0] = first
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for k in range(24):
        write_image(folder / f"{'ab'[k % 2]}" / f"{k:02d}.png", [(12, 10), (10, 12), (7, 7)][k % 3], seed=k)
    (folder / "notes.txt").write_text("not an image")
    return folder


def run(photos, output, factory=None, **options):
    options = LabelingOptions(**{"batch_size": 3, "images_per_shard": 10, **options})
    return run_labeling(read_image_list(str(photos)), str(output), factory or FakeFactory(), options)


def start(photos, output, host, workers):
    """Start a run as a process group of its own; it continues an existing output."""
    command = [sys.executable, fake_labeler.__file__, str(photos), str(output), host, str(workers)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def contents(folder):
    """Bytes of every file of a folder except the reports, which contain times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(REPORTS)
    }


@pytest.mark.parametrize("on_host", [True, False])
def test_same_bytes_for_any_workers_and_as_one_file(photos, tmp_path, on_host):
    factory = FakeFactory(on_host=on_host)
    report = run(photos, tmp_path / "w0", factory)
    assert report.exit_code == 0 and report.skipped == []
    reference = contents(tmp_path / "w0")
    assert {"shard_00000.json", "shard_00001.json", "shard_00002.json", "index.json", "run.json"} <= set(reference)
    run(photos, tmp_path / "w2", factory, workers=2)
    assert contents(tmp_path / "w2") == reference

    run(photos, tmp_path / "one" / "labels.json", factory, workers=2)
    merge_shards(str(tmp_path / "w0"), str(tmp_path / "merged.json"))
    assert (tmp_path / "one" / "labels.json").read_bytes() == (tmp_path / "merged.json").read_bytes()
    names = ["errors.json", "labels.index.npz", "labels.json", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    index = (tmp_path / "one" / "labels.index.npz").read_bytes()
    (tmp_path / "one" / "labels.index.npz").unlink()  # as after a kill before the index was written
    shutil.copytree(tmp_path / "w0", tmp_path / "one" / "labels.json.parts")
    run(photos, tmp_path / "one" / "labels.json", factory, resume=True)
    assert (tmp_path / "one" / "labels.index.npz").read_bytes() == index
    assert not (tmp_path / "one" / "labels.json.parts").exists()


def test_label_file_is_coco_with_fixed_ids(photos, tmp_path):
    from pycocotools.coco import COCO

    run(photos, tmp_path / "labels.json", FakeFactory(on_host=False))
    coco = COCO(str(tmp_path / "labels.json"))
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    assert [coco.imgs[i]["file_name"] for i in range(1, 25)] == names
    assert all(a["id"] // 10_000 == a["image_id"] and a["id"] % 10_000 >= 1 for a in coco.anns.values())
    first = coco.loadAnns(coco.getAnnIds([1]))
    assert first[0]["area"] == 12 * 10 and first[0]["parent_id"] == 0 and first[1]["parent_id"] == first[0]["id"]
    assert coco.annToMask(first[0]).shape == (12, 10)
    assert coco.dataset["info"]["config"] == {"name": "fake", "theta": 0.9, "nested": {"on_host": False}}
    assert coco.dataset["skipped"] == []


def test_merged_jobs_of_a_shard_split_give_the_same_labels(photos, tmp_path):
    run(photos, tmp_path / "straight.json")
    for job in (2, 0, 1):
        run(photos, tmp_path / "jobs", job=job, jobs=3)
        index = json.loads((tmp_path / "jobs" / "index.json").read_text())
        assert index["complete"] == (job == 1)
    assert (tmp_path / "jobs" / "errors-2-of-3.json").read_text() == "[]\n"
    assert index["layout"] == {"images": 24, "images_per_shard": 8, "shards": 3}
    merge_shards(str(tmp_path / "jobs"), str(tmp_path / "merged.json"))
    assert (tmp_path / "merged.json").read_bytes() == (tmp_path / "straight.json").read_bytes()
    with pytest.raises(InputError, match="images_per_shard: was 8, now 10"):
        run(photos, tmp_path / "jobs", resume=True)
    with pytest.raises(InputError, match="--resume"):
        run(photos, tmp_path / "jobs", job=1, jobs=3)


@pytest.mark.parametrize("on_host, workers", [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_failing_images_are_listed_and_the_rest_is_labeled(photos, tmp_path, on_host, workers):
    (photos / "b" / "empty.jpg").write_bytes(b"")
    (photos / "b" / "text.png").write_text("hello")
    good = (photos / "a" / "00.png").read_bytes()
    (photos / "b" / "cut.png").write_bytes(good[: len(good) // 2])
    (photos / "b" / "gone.png").symlink_to(photos / "nowhere.png")
    write_image(photos / "c" / "features.png", first=fake_labeler.FAIL_FEATURES)
    write_image(photos / "c" / "finish.png", first=fake_labeler.FAIL_FINISH)
    write_image(photos / "c" / "one.png", size=(1, 1))
    report = run(photos, tmp_path / "out", FakeFactory(on_host=on_host), workers=workers)
    assert report.exit_code == 3
    errors = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert errors == report.skipped
    found = {error["file_name"]: (error["step"], error["reason"]) for error in errors}
    assert found.pop("b/cut.png")[0] == "read"
    assert found == {
        "b/empty.jpg": ("read", "the file is empty"),
        "b/text.png": ("read", "not an image in a supported raster format, or its header is damaged"),
        "b/gone.png": ("read", "a link to a file that does not exist"),
        "c/features.png": ("features", "RuntimeError: no features for this one"),
        "c/finish.png": ("finish", "ValueError: no forest for this one"),
    }
    assert report.summary["images"] == 25 and report.summary["skipped"] == 6
    assert len(ShardedDataset(str(tmp_path / "out"))) == 25
    # the list is saved: a resumed run without work reports the same
    again = run(photos, tmp_path / "out", FakeFactory(on_host=on_host), resume=True)
    assert again.skipped == errors


@pytest.mark.parametrize("on_host", [True, False])
def test_dead_workers_are_replaced(photos, tmp_path, on_host):
    write_image(photos / "c" / "killer.png", first=fake_labeler.KILL)
    write_image(photos / "c" / "unlucky.png", seed=5, first=fake_labeler.KILL_ONCE)
    before = shared_blocks()
    factory = FakeFactory(on_host=on_host, marker=str(tmp_path / "marker"))
    report = run(photos, tmp_path / "out", factory, workers=2)
    step = "worker" if on_host else "finish"
    assert [(e["file_name"], e["step"]) for e in report.skipped] == [("c/killer.png", step)]
    assert "killed" in report.skipped[0]["reason"]
    names = [image["image"]["file_name"] for image in ShardedDataset(str(tmp_path / "out"))]
    assert "c/unlucky.png" in names and len(names) == 25
    # an image that kills its worker is tried only twice
    assert (tmp_path / "marker.kills").read_text() == "++"
    assert not left_behind(before)


def shared_blocks():
    """Names of the blocks of shared memory on this machine that were created by Python."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")} if Path("/dev/shm").is_dir() else set()


def left_behind(before):
    """Names of new blocks that remain; those of other test processes disappear within seconds."""
    made, end = shared_blocks() - before, time.monotonic() + 20
    while made & shared_blocks() and time.monotonic() < end:
        time.sleep(0.05)
    return made & shared_blocks()


def test_no_shared_memory_is_left_behind(photos, tmp_path):
    write_image(photos / "c" / "finish.png", first=fake_labeler.FAIL_FINISH)
    before = shared_blocks()
    run(photos, tmp_path / "out", FakeFactory(on_host=False), workers=2)
    assert not left_behind(before)
    # nor of images that are queued when the run ends early
    with pytest.raises(SOHESError):
        run(photos, tmp_path / "early", FakeFactory(on_host=False, only_in=os.getpid()), workers=1)
    assert not left_behind(before)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_labeler_with_crops_on_the_device_runs_in_one_process(photos, tmp_path, workers):
    write_image(photos / "c" / "finish.png", first=fake_labeler.FAIL_FINISH)
    factory = FakeFactory(on_host=False, crops=True, only_in=os.getpid())
    assert run(photos, tmp_path / "w0", factory).exit_code == 3
    assert run(photos, tmp_path / "out", factory, workers=workers).exit_code == 3
    assert contents(tmp_path / "out") == contents(tmp_path / "w0")
    # on the CPU every worker has its own extractor
    for workers_of_host in (0, workers):
        run(photos, tmp_path / f"host{workers_of_host}", FakeFactory(crops=True), workers=workers_of_host)
    assert contents(tmp_path / f"host{workers}") == contents(tmp_path / "host0")


def test_a_worker_that_cannot_start_stops_the_run(photos, tmp_path):
    with pytest.raises(SOHESError, match="cannot build its labeler: RuntimeError: not in this process"):
        run(photos, tmp_path / "out", FakeFactory(only_in=os.getpid()), workers=1)


@pytest.mark.parametrize("host, workers, single", [("host", 2, True), ("device", 2, False), ("host", 0, False)])
def test_runs_killed_at_random_and_resumed_give_the_same_bytes(photos, tmp_path, host, workers, single):
    name = "labels.json" if single else ""
    write_image(photos / "c" / "finish.png", first=fake_labeler.FAIL_FINISH)
    run(photos, tmp_path / "straight" / name, FakeFactory(on_host=host == "host"))
    moments = random.Random(workers)
    kills, code = 0, None
    for _ in range(30):
        process = start(photos, tmp_path / "killed" / name, host, workers)
        if kills < 2:
            # wait until files change, then for a random time, so that most kills interrupt the work
            before = _state(tmp_path / "killed")
            deadline = time.monotonic() + 60
            while process.poll() is None and _state(tmp_path / "killed") == before and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        code = process.wait(timeout=120)
        if code != -signal.SIGKILL:
            break
        kills += 1
    assert code == 3 and kills >= 2
    assert contents(tmp_path / "killed") == contents(tmp_path / "straight")


def test_resume_repairs_every_flipped_bit(photos, tmp_path):
    """In a folder with a finished and an unfinished shard, everything damaged is labeled again."""
    run(photos, tmp_path / "straight")
    reference = contents(tmp_path / "straight")
    out = tmp_path / "out"
    shutil.copytree(tmp_path / "straight", out)
    folder = RunFolder(str(out), read_image_list(str(photos)), ShardLayout(24, 10), {}, 3)
    for name in ("shard_00001.json", "shard_00001.index.npz", "index.json", "errors.json"):
        (out / name).unlink()
    journal = ShardJournal(folder._journal_path(1))
    shard = ShardedDataset(str(tmp_path / "straight"))
    known = from_array(load_index(str(tmp_path / "straight" / "shard_00001.json")).photos)
    for number, unit in enumerate(((10, 11, 12), (13, 14))):
        records = [shard[k] for k in unit]
        lines = [(r["image"]["id"], False, [dump_line(r["image"]), *map(dump_line, r["annotations"])]) for r in records]
        journal.append(number, lines, {image_id: known[image_id] for image_id, *_ in lines})
    journal.close()
    unfinished = contents(out)
    moments = random.Random(0)
    for name in ("shard_00001.partial.jsonl", "shard_00000.json", "run.json", "shard_00000.index.npz"):
        for _ in range(4):
            for path in out.rglob("*"):
                path.unlink()
            for path, data in unfinished.items():
                (out / path).write_bytes(data)
            data = bytearray(unfinished[name])
            data[moments.randrange(len(data))] ^= 1 << moments.randrange(8)
            (out / name).write_bytes(data)
            run(photos, out, resume=True)
            found = contents(out)
            found.pop("shard_00000.index.npz")  # a repaired index has less information on the photos
            assert found == {key: value for key, value in reference.items() if key != "shard_00000.index.npz"}


def test_resume_rewrites_a_damaged_label_file(photos, tmp_path):
    run(photos, tmp_path / "labels.json")
    good = (tmp_path / "labels.json").read_bytes()
    for damaged in (good[:3000] + b"~" + good[3001:], good + b" ", good + b"\n", good[:-1]):
        (tmp_path / "labels.json").write_bytes(damaged)
        run(photos, tmp_path / "labels.json", resume=True)
        assert (tmp_path / "labels.json").read_bytes() == good


def stop(path, *content):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["out", "labels.json", "unfinished"])
@pytest.mark.parametrize("on_host", [True, False])
def test_photos_that_were_replaced_are_labeled_again(photos, tmp_path, caplog, monkeypatch, name, on_host):
    def labels(output):
        return [path.read_bytes() for path in sorted(output.glob("shard*.json"))] or output.read_bytes()

    factory, output = FakeFactory(on_host=on_host), tmp_path / name
    (photos / "b" / "99.png").write_text("no photo")
    if name == "unfinished":
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "write_label_file", stop)
            with pytest.raises(KeyboardInterrupt):
                run(photos, output, factory)
    else:
        assert run(photos, output, factory).exit_code == 3
        before = labels(output)
        for path in photos.rglob("[ab]/[01]*.png"):  # as after a copy that lost modification times
            os.utime(path, ns=(1, 1))
        again = run(photos, output, factory, resume=True)
        assert again.summary.get("this_run", {"images": 0})["images"] == 0
        assert labels(output) == before
    assert not [record for record in caplog.records if "have changed" in record.msg]
    write_image(photos / "a" / "04.png", (12, 10), seed=99)
    write_image(photos / "b" / "99.png", (10, 12), seed=98)
    report = run(photos, output, factory, resume=True)
    told = [record.args[1:] for record in caplog.records if "have changed" in record.msg]
    if name == "unfinished":  # the shard of 99.png was not started
        assert told == [(1, "'a/04.png'")] and report.summary["this_run"]["images"] == 25 - 9 * on_host
    else:
        assert [count for count, _ in told] == ([2] if name == "labels.json" else [1, 1])
        assert report.summary["this_run"]["images"] == (2 if on_host else 15)  # whole batches are labeled again
    assert report.exit_code == 0
    run(photos, tmp_path / f"new_{name}", factory)
    assert labels(output) == labels(tmp_path / f"new_{name}")
    again = run(photos, output, factory, resume=True)
    assert again.summary.get("this_run", {"images": 0})["images"] == 0


@pytest.mark.parametrize("name", ["out", "labels.json"])
def test_labels_of_older_versions_and_of_deleted_photos_are_kept(photos, tmp_path, caplog, name):
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(sorted(str(path) for path in photos.rglob("*.png"))))
    caplog.set_level("INFO")
    run(listed, tmp_path / name)
    for path in tmp_path.rglob("*.index.npz"):  # as written by older versions
        index = load_index(str(path).replace(".index.npz", ".json"))
        index.photos = None
        save_index(str(path).replace(".index.npz", ".json"), index)
    write_image(photos / "a" / "04.png", seed=99)
    for expected in (True, False):  # reported once, then saved
        caplog.clear()
        run(listed, tmp_path / name, resume=True)
        assert expected == any("no states of its photos" in record.msg for record in caplog.records)
    (photos / "a" / "04.png").unlink()
    write_image(photos / "a" / "06.png", seed=97)
    report = run(listed, tmp_path / name, resume=True)
    assert report.exit_code == 0 and report.summary["this_run"]["images"] == 1


def _state(folder):
    return {path: path.stat().st_size for path in folder.rglob("*") if path.exists()}


def test_workers_end_with_a_killed_parent(photos, tmp_path):
    process = start(photos, tmp_path / "out", "host", 2)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/*.partial.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # only the parent
    process.wait()
    while _group_alive(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_alive(process.pid)


def _group_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_existing_output_and_other_configuration_are_refused(photos, tmp_path):
    for output in (tmp_path / "out", tmp_path / "file" / "labels.json"):
        run(photos, output)
        before = contents(output.parent)
        with pytest.raises(InputError, match="--resume.*--overwrite"):
            run(photos, output)
        with pytest.raises(InputError, match=r"config\.theta: was 0\.9, now 0\.8"):
            run(photos, output, FakeFactory(theta=0.8), resume=True)
        with pytest.raises(InputError, match=r"config\.nested\.on_host: was true, now false"):
            run(photos, output, FakeFactory(on_host=False), resume=True)
        run(photos, output, resume=True)
        assert contents(output.parent) == before
        run(photos, output, FakeFactory(theta=0.8), overwrite=True)
        assert contents(output.parent) != before
    write_image(photos / "z.png")
    with pytest.raises(InputError, match=r"images\.count: was 24, now 25"):
        run(photos, tmp_path / "out", FakeFactory(theta=0.8), resume=True)


def test_two_processes_cannot_write_one_shard(photos, tmp_path):
    (tmp_path / "out").mkdir()
    journal = ShardJournal(str(tmp_path / "out" / "shard_00000.partial.jsonl"))
    with pytest.raises(FolderBusyError, match="another process"):
        run(photos, tmp_path / "out")
    journal.close()
    assert run(photos, tmp_path / "out", resume=True).exit_code == 0


@pytest.mark.parametrize("name", ["out", "labels.json"])
def test_a_folder_in_use_is_unchanged(photos, tmp_path, name):
    output = tmp_path / name
    run(photos, output)
    before = contents(tmp_path)
    lock = FolderLock(str(output) + (".parts" if name.endswith(".json") else ""))
    for options in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(FolderBusyError, match="in use"):
            run(photos, output, FakeFactory(theta=0.8), **options)
    if name == "out":
        with pytest.raises(FolderBusyError):
            run(photos, output, job=0, jobs=2)
    lock.release(remove=name.endswith(".json"))
    assert contents(tmp_path) == before
    run(photos, output, FakeFactory(theta=0.8), overwrite=True)
    assert contents(tmp_path) != before


def test_summary_counts(tmp_path):
    write_image(tmp_path / "photos" / "a.png", (64, 64))
    write_image(tmp_path / "photos" / "b.png", (8, 8))
    run(tmp_path / "photos", tmp_path / "out", FakeFactory())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["masks"], summary["skipped"]) == (2, 8, 0)
    assert summary["masks_per_image"] == {"min": 4, "mean": 4.0, "median": 4.0, "max": 4}
    assert sum(summary["depth_histogram"].values()) == 8 and summary["depth_histogram"]["0"] == 2
    assert summary["size_histogram"] == {"small": 5, "medium": 3, "large": 0}
    assert sum(summary["relative_size_histogram"].values()) == 8
    assert summary["this_run"]["images"] == 2 and summary["this_run"]["stages"]["finish"]["images_per_second"] > 0


def test_bad_options():
    for options, message in [
        ({"job": 3, "jobs": 3}, "0 <= I < N"),
        ({"workers": -1}, "--workers"),
        ({"batch_size": 0}, "--batch-size"),
        ({"images_per_shard": 1001}, "--images-per-shard"),
        ({"resume": True, "overwrite": True}, "choose one"),
        ({"engine": "dask"}, "--engine"),
    ]:
        with pytest.raises(InputError, match=message):
            LabelingOptions(**options)


def test_one_file_cannot_be_sharded(photos, tmp_path):
    with pytest.raises(InputError, match="sohes merge"):
        run(photos, tmp_path / "labels.json", job=0, jobs=2)

"""Files are written atomically, and a folder is locked by one run."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import signal
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from sohes_d2.errors import FolderBusyError, InputError, OutputError
from sohes_d2.structures import files
from sohes_d2.structures.files import (
    FolderLock,
    LineFile,
    atomic_writer,
    check_output,
    write_bytes,
    write_json,
    write_picture,
    write_text,
)


@pytest.fixture
def small_files():
    """Limit files to 64 KiB, so that writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def save_arrays(path):
    with atomic_writer(path) as file:
        np.savez(file, a=np.arange(1 << 16))


def save_tensors(path):
    with atomic_writer(path) as file:
        torch.save({"a": torch.arange(1 << 16)}, file)


def save_noise(path):
    write_picture(path, np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8), "PNG")


@pytest.mark.parametrize(
    "save",
    [
        save_arrays,
        save_tensors,
        save_noise,
        lambda path: write_bytes(path, bytes(1 << 17)),
        lambda path: write_text(path, "a" * (1 << 17)),
        lambda path: write_json(path, list(range(1 << 15))),
    ],
)
def test_a_full_disk_keeps_the_old_file(tmp_path, save, small_files):
    path = tmp_path / "file"
    path.write_bytes(b"older")
    with pytest.raises(OutputError) as error:
        save(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_errors_of_each_step_contain_file_and_remedy(tmp_path, monkeypatch, number, call):
    path = tmp_path / "file"
    path.write_bytes(b"older")

    def fail(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(files.os, call, fail)
        with pytest.raises(OutputError) as error:
            write_bytes(path, b"new")
    assert str(path) in str(error.value) and files._REMEDIES[number] in str(error.value)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["file"]


def test_other_errors_are_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "file"):
        open(tmp_path / "input")
    with pytest.raises(KeyboardInterrupt), atomic_writer(tmp_path / "file") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_and_one_that_is_missing(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "file"):
        with pytest.raises(OutputError, match=str(path)):
            write_bytes(path, b"")


def test_links_stay_links_and_pipes_are_written_to(tmp_path):
    (tmp_path / "target").write_bytes(b"older")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_bytes(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_bytes(tmp_path / "pipe", b"through")
    reader.join(30)
    assert found == [b"through"]
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "target"]


def test_a_temporary_file_of_a_killed_process_is_reused(tmp_path):
    (tmp_path / "file.tmp").write_bytes(b"a longer rest of a killed process")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def write_often(path, letter):
    for _ in range(50):
        write_bytes(path, letter * 100_000)


def test_processes_that_write_one_file_at_the_same_time_do_not_mix(tmp_path):
    start = multiprocessing.get_context("fork").Process
    writers = [start(target=write_often, args=(tmp_path / "file", letter)) for letter in (b"a", b"b", b"c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    content = (tmp_path / "file").read_bytes()
    assert content in [letter * 100_000 for letter in (b"a", b"b", b"c")]
    assert os.listdir(tmp_path) == ["file"]


def test_pictures(tmp_path):
    write_picture(tmp_path / "a.png", np.full((4, 6, 3), 7, np.uint8), "PNG")
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == np.full((4, 6, 3), 7).tolist()


def test_lines_are_whole_after_a_cut_and_after_a_full_disk(tmp_path, small_files):
    path = tmp_path / "metrics.json"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    lines = LineFile(path)
    lines.append(['{"a": 3}'])
    with pytest.raises(OutputError, match="metrics.json"):
        lines.append([json.dumps({"a": "x" * (1 << 16)})])
    lines.append(['{"a": 4}', '{"a": 5}'])
    lines.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
    path.write_text('{"a": ')
    LineFile(path).close()
    assert path.read_text() == ""


def test_a_folder_is_locked_by_one_run(tmp_path):
    lock = FolderLock(str(tmp_path / "run"))
    for job, jobs in ((0, 1), (0, 2), (1, 2)):
        with pytest.raises(FolderBusyError, match="in use"):
            FolderLock(str(tmp_path / "run"), job, jobs)
    lock.release()
    FolderLock(str(tmp_path / "run")).release()


def test_jobs_of_one_split_share_a_folder(tmp_path):
    locks = [FolderLock(str(tmp_path), job, 3) for job in range(3)]
    for job, jobs in ((0, 1), (1, 3), (0, 2)):
        with pytest.raises(FolderBusyError):
            FolderLock(str(tmp_path), job, jobs)
    locks[1].release()
    FolderLock(str(tmp_path), 1, 3).release()
    with pytest.raises(FolderBusyError):
        FolderLock(str(tmp_path))
    for lock in (locks[0], locks[2]):
        lock.release()
    FolderLock(str(tmp_path)).release()


def hold(folder, ready):
    lock = FolderLock(folder)  # noqa: F841 - held
    worker = os.fork()  # like a loader's worker, which outlives its parent
    if worker == 0:
        signal.pause()
    ready.send(worker)
    signal.pause()


def test_a_lock_ends_with_its_process(tmp_path):
    receive, send = multiprocessing.Pipe(duplex=False)
    holder = multiprocessing.get_context("fork").Process(target=hold, args=(str(tmp_path), send))
    holder.start()
    worker = receive.recv()
    try:
        with pytest.raises(FolderBusyError):
            FolderLock(str(tmp_path))
        holder.kill()
        # not join(), which also waits for the worker, since it holds the other end of the pipe
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        FolderLock(str(tmp_path)).release()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_outputs_that_cannot_be_written_are_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("none")
    for path, folder in (("new", True), ("a/b/new", True), ("new.json", False), ("folder", True), ("file", False)):
        check_output(tmp_path / path, folder)
    monkeypatch.chdir(tmp_path)
    check_output("new.json", folder=False)
    check_output("new", folder=True)
    for path, folder, reason in (
        ("file", True, "is a file; name a folder"),
        ("folder", False, "is a folder; name a file"),
        ("file/below", True, "is not a folder"),
        ("file/below.json", False, "is not a folder"),
        ("x" * 300, True, "File name too long"),
        (f"{'x' * 300}.json", False, "File name too long"),
        (f"{'x' * 300}/new.json", False, "File name too long"),
        ("a/" * 3000, True, "File name too long"),
        ("", True, "is not a path"),
        ("a\0b", True, "is not a path"),
    ):
        with pytest.raises(InputError, match=reason):
            check_output(path, folder)
    monkeypatch.setattr(os, "access", lambda path, mode: path != str(tmp_path))
    with pytest.raises(InputError, match="--page.*no permission to write into"):
        check_output(tmp_path / "new" / "page.html", False, "--page")
    assert sorted(os.listdir(tmp_path)) == ["dangling", "file", "folder"]

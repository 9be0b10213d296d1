"""Trainings that are killed, stopped or run out of disk space, then resumed, end like uninterrupted ones."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1]


def start(folder, *arguments):
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "helpers.kill_points", str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def ends(group, seconds=60):
    """Whether all processes of a group end within ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("what", ["kill", "full"])
def test_a_stopped_training_ends_with_the_same_weights(tmp_path, request, what):
    """Stopped at each file operation with --all-stop-points, else at three of them."""
    points = ["all"] if request.config.getoption("--all-stop-points") else ["0.1", "0.55", "0.9"]
    output, errors = start(tmp_path, what, *points).communicate()
    found = json.loads(output.splitlines()[-1]) if output else errors
    print(found)
    assert found["operations"] > 50
    assert found["points"] >= 3
    assert found["wrong"] == []


@pytest.mark.parametrize(
    ("number", "to_group", "processes", "workers"),
    [
        (signal.SIGINT, False, 2, 0),
        (signal.SIGTERM, True, 2, 0),
        (signal.SIGINT, True, 1, 2),
        (signal.SIGTERM, False, 1, 1),
    ],
)
def test_a_signal_ends_all_processes_with_a_checkpoint(tmp_path, number, to_group, processes, workers):
    process = start(tmp_path, "train", "100000", str(processes), str(workers))
    metrics = tmp_path / "run" / "metrics.json"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    (os.killpg if to_group else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.strip().splitlines() == ["train: stopped; continue with --resume"]
    assert ends(process.pid)
    last = (tmp_path / "run" / "last_checkpoint").read_text()
    done = torch.load(tmp_path / "run" / last)["iteration"] + 1
    assert last == f"model_{done - 1:07d}.pth"
    assert not (tmp_path / "run" / "model_final.pth").exists()
    if to_group or workers:
        return
    assert start(tmp_path, "train", str(done), "1", "--resume").wait() == 0
    assert torch.load(tmp_path / "run" / "model_final.pth")["iteration"] == done - 1

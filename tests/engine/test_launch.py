"""Two processes on the CPU: same results as one process, joint exit, error messages."""

import socket
import time

import pytest
import torch
from helpers.two_processes import die, fail, gradients, leave, work

from sohes_d2.engine import launch as module
from sohes_d2.engine.launch import RemoteTraceback, launch
from sohes_d2.errors import ConfigError, SOHESError


def test_two_processes_have_the_gradients_of_one_with_all_images(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as error:
        launch(work, 2, args=(str(tmp_path), 3), use_gpus=False)
    assert error.value.code == 3
    two = torch.load(tmp_path / "gradients2.pth")
    monkeypatch.setattr("sohes_d2.modeling.point_sampling.random_points", None)  # restored after the test
    one = gradients(str(tmp_path / "one"))
    assert two.keys() == one.keys()
    assert len(one) > 100
    assert all(gradient is not None for gradient in one.values())  # a missing one would block the processes
    largest = max(gradient.abs().max() for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5 * float(largest), rtol=1e-3, msg=name)
    # written by `train` in these processes: both resumed, one saved
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "run" / "model_final.pth")["iteration"] == 7


@pytest.mark.parametrize("exit_code", [None, 3])
def test_exit_codes_are_kept_during_finalization(tmp_path, capfd, exit_code):
    if exit_code is None:
        launch(leave, 2, args=(str(tmp_path), None), use_gpus=False)
        left = ["left0", "left1"]
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    else:
        with pytest.raises(SystemExit) as error:
            launch(leave, 2, args=(str(tmp_path), exit_code), use_gpus=False)
        assert error.value.code == exit_code
        left = [path.name for path in tmp_path.iterdir()]  # the other process may have been stopped
    printed = capfd.readouterr().out
    for name in left:
        assert (tmp_path / name).read_text() == name
        assert name in printed


def test_one_process_is_called_directly():
    called = []
    launch(called.append, 1, args=("here",), use_gpus=False)
    assert called == ["here"]


def test_a_killed_process_is_reported():
    with pytest.raises(SOHESError, match="process 1 of 2 .*SIGKILL"):
        launch(die, 2, use_gpus=False)


def test_an_error_is_raised_with_its_traceback():
    with pytest.raises(FloatingPointError, match="^no number$") as error:
        launch(fail, 2, use_gpus=False)
    assert isinstance(error.value.__cause__, RemoteTraceback)
    assert "in fail" in str(error.value.__cause__)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("address", ["auto", "tcp://host.invalid:1234", "tcp://127.0.0.1", "nowhere", "file:///tmp/x"])
def test_invalid_addresses_fail_at_once(address, rank):
    start = time.monotonic()
    with pytest.raises(ConfigError, match="--dist-url"):
        launch(print, 1, machines=2, machine_rank=rank, address=address, use_gpus=False)
    assert time.monotonic() - start < 30


def test_ports_that_are_in_use_or_do_not_answer_are_reported(monkeypatch):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            launch(print, 1, machines=2, machine_rank=0, address=f"tcp://127.0.0.1:{port}", use_gpus=False)
    monkeypatch.setattr(module, "_STORE_TIMEOUT", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections, but sends nothing
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match="what listens there"):
            launch(print, 1, machines=2, machine_rank=1, address=address, use_gpus=False)
    monkeypatch.setattr(module, "_JOIN_TIMEOUT", module.timedelta(seconds=1))
    with pytest.raises(ConfigError, match="machine 0 cannot be reached"):
        launch(print, 1, machines=2, machine_rank=1, address=f"tcp://127.0.0.1:{port}", use_gpus=False)

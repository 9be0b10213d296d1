"""Two processes on the CPU compute what one does."""

import pytest
import torch
from two_processes import gradients, leave, work

from sohes_d2.engine.launch import launch


def test_two_processes_have_the_gradients_of_one_with_all_images(tmp_path, monkeypatch):
    with pytest.raises(SystemExit) as error:
        launch(work, 2, args=(str(tmp_path), 3), use_gpus=False)
    assert error.value.code == 3
    two = torch.load(tmp_path / "gradients2.pth")
    monkeypatch.setattr("sohes_d2.modeling.point_sampling.random_points", None)  # so that it is put back in the end
    one = gradients(str(tmp_path / "one"))
    assert two.keys() == one.keys()
    assert len(one) > 100
    assert all(gradient is not None for gradient in one.values())  # or the processes would wait for it
    largest = max(gradient.abs().max() for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-5 * float(largest), rtol=1e-3, msg=name)
    # what `train` there left behind: both resumed, one wrote
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    assert torch.load(tmp_path / "run" / "model_final.pth")["iteration"] == 7


@pytest.mark.parametrize("exit_code", [None, 3])
def test_processes_end_as_they_say_whatever_happens_while_python_ends(tmp_path, capfd, exit_code):
    if exit_code is None:
        launch(leave, 2, args=(str(tmp_path), None), use_gpus=False)
        left = ["left0", "left1"]
        assert sorted(path.name for path in tmp_path.iterdir()) == left
    else:
        with pytest.raises(SystemExit) as error:
            launch(leave, 2, args=(str(tmp_path), exit_code), use_gpus=False)
        assert error.value.code == exit_code
        left = [path.name for path in tmp_path.iterdir()]  # the other one may have been stopped
    printed = capfd.readouterr().out
    for name in left:
        assert (tmp_path / name).read_text() == name
        assert name in printed


def test_one_process_is_simply_called():
    called = []
    launch(called.append, 1, args=("here",), use_gpus=False)
    assert called == ["here"]

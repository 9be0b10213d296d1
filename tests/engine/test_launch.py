"""Two processes on the CPU compute what one does."""

import pytest
import torch
from torch.multiprocessing import ProcessExitedException
from two_processes import gradients, work

from sohes_d2.engine.launch import launch


def test_two_processes_have_the_gradients_of_one_with_all_images(tmp_path, monkeypatch):
    with pytest.raises(ProcessExitedException) as error:
        launch(work, 2, args=(str(tmp_path), 3), use_gpus=False)
    assert error.value.exit_code == 3
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


def test_one_process_is_simply_called():
    called = []
    launch(called.append, 1, args=("here",), use_gpus=False)
    assert called == ["here"]

"""Mixed precision on the CPU, and when losses are scaled."""

import pytest
import torch

from sohes_d2.config_file import load_config
from sohes_d2.engine.amp import MixedPrecision
from sohes_d2.errors import ConfigError


def config(enabled, dtype="bfloat16"):
    cfg = load_config("")
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED = enabled
    cfg.SOLVER.AMP.DTYPE = dtype
    return cfg


def output_dtype(precision):
    with precision.autocast():
        return torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype


def test_autocast_follows_the_config():
    assert output_dtype(MixedPrecision.from_config(config(False))) == torch.float32
    assert output_dtype(MixedPrecision.from_config(config(True))) == torch.bfloat16


def test_a_step_is_taken_without_loss_scaling():
    precision = MixedPrecision.from_config(config(True))
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    precision.backward((3 * weight).sum())
    precision.step(optimizer)
    assert weight.item() == 0.5
    assert not precision.scaler.is_enabled()
    assert precision.state_dict() == {}


def test_losses_are_scaled_for_float16_on_cuda_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked.append(enabled))
    MixedPrecision("cuda:1", torch.float16)
    MixedPrecision("cuda:1", torch.bfloat16)
    MixedPrecision("cuda:1")
    assert asked == [True, False, False]


def test_losses_are_not_scaled_on_the_cpu():
    assert not MixedPrecision("cpu", torch.float16).scaler.is_enabled()


def test_a_scale_of_another_precision_is_left_alone():
    precision = MixedPrecision("cpu", torch.bfloat16)
    precision.load_state_dict({"scale": 8.0, "growth_factor": 2.0})
    assert precision.state_dict() == {}


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="'fp8' is not one of bfloat16, float16"):
        MixedPrecision.from_config(config(True, "fp8"))

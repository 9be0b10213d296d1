"""Mixed precision on the CPU, and loss scaling."""

from types import SimpleNamespace

import pytest
import torch

from sohes_d2.config.load import load_config
from sohes_d2.engine.step import TrainingStep, build_precision
from sohes_d2.errors import ConfigError


def config(enabled, dtype="bfloat16", device="cpu"):
    cfg = load_config("")
    cfg.MODEL.DEVICE = device
    cfg.SOLVER.AMP.ENABLED = enabled
    cfg.SOLVER.AMP.DTYPE = dtype
    return cfg


def test_autocast_follows_the_config_and_nothing_is_scaled_on_the_cpu(caplog):
    for enabled, dtype, expected in [
        (False, "bfloat16", torch.float32),
        (True, "bfloat16", torch.bfloat16),
        (True, "float16", torch.float16),
    ]:
        assert not caplog.records
        autocast, scaler = build_precision(config(enabled, dtype))
        for _ in range(2):  # reusable in several iterations
            with autocast:
                assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
        assert not scaler.is_enabled() and scaler.state_dict() == {}
    assert len(caplog.records) == 1, "float16 without scaling"


def test_losses_are_scaled_for_float16_on_cuda_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: asked.append(enabled))
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: None)
    for enabled, dtype in [(True, "float16"), (True, "bfloat16"), (False, "float16")]:
        build_precision(config(enabled, dtype, "cuda:1"))
    assert asked == [True, False, False]


def step_of(scaler):
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return TrainingStep(model, optimizer, torch.autocast("cpu", enabled=False), scaler)


def test_the_scale_is_checkpointed_unless_the_precision_changes():
    scaled = torch.amp.GradScaler("cpu", init_scale=8.0)
    state = step_of(scaled).state_dict()
    assert state["grad_scaler"]["scale"] == 8.0
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    step_of(other).load_state_dict(state)
    assert other.get_scale() == 8.0
    plain = step_of(torch.amp.GradScaler("cpu", enabled=False))
    assert plain.state_dict()["grad_scaler"] == {}
    plain.load_state_dict(state)
    assert plain.state_dict()["grad_scaler"] == {}
    step_of(other).load_state_dict(plain.state_dict())
    assert other.get_scale() == 8.0


def test_gradients_are_those_of_the_losses_and_an_overflow_leaves_the_weights(monkeypatch):
    written = {}
    storage = SimpleNamespace(put_scalar=lambda name, value, **options: written.update({name: value}))
    monkeypatch.setattr("sohes_d2.engine.step.get_event_storage", lambda: storage)
    monkeypatch.setattr(TrainingStep, "_write_metrics", lambda *args: None)
    for scaler in (torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=8.0)):
        step = step_of(scaler)
        with torch.no_grad():
            step.model.weight.fill_(2.0)
        step.iter = 0
        step.feed([torch.full((1, 1), 3.0), torch.full((1, 1), float("inf"))], seed=0)
        step.run_step()
        assert step.model.weight.item() == 0.5
        if scaler.is_enabled():
            assert written["loss_scale"] == 8.0
            step.run_step()
            assert step.model.weight.item() == 0.5
            assert written["loss_scale"] == 4.0


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ConfigError, match="'fp8' is not one of bfloat16, float16"):
        build_precision(config(True, "fp8"))
    build_precision(config(False, "fp8"))

"""Learning rates over the iterations."""

import math

import pytest
import torch

from sohes_d2.config.load import load_config
from sohes_d2.engine.schedule import build_lr_scheduler
from sohes_d2.errors import ConfigError


def make(name, **keys):
    cfg = load_config("")
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.MAX_ITER = 100
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.WARMUP_FACTOR = 0.1
    cfg.SOLVER.STEPS = (50, 80)
    for key, value in keys.items():
        cfg.SOLVER[key] = value
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [weights[0]], "lr": 1.0}, {"params": [weights[1]], "lr": 0.1}])
    return optimizer, build_lr_scheduler(cfg, optimizer)


def rates(optimizer, scheduler, count):
    """(lr of the first group, of the second) in each of the next iterations."""
    found = []
    for _ in range(count):
        found.append(tuple(group["lr"] for group in optimizer.param_groups))
        optimizer.step()
        scheduler.step()
    return found


def test_poly_falls_to_zero_after_the_warm_up():
    found = rates(*make("WarmupPolyLR"), 100)
    assert found[0] == pytest.approx((0.1, 0.01))
    assert found[5][0] == pytest.approx((0.1 + 0.9**0.9) / 2)  # half-way to the curve
    for iteration in (10, 50, 99):
        factor = (1 - iteration / 100) ** 0.9
        assert found[iteration] == pytest.approx((factor, 0.1 * factor))


def test_poly_has_its_power():
    assert rates(*make("WarmupPolyLR", POLY_LR_POWER=2.0), 51)[50][0] == pytest.approx(0.25)


def test_a_warm_up_is_not_needed():
    assert rates(*make("WarmupPolyLR", WARMUP_ITERS=0), 1)[0] == pytest.approx((1.0, 0.1))


def test_steps():
    found = [lr for lr, _ in rates(*make("WarmupMultiStepLR"), 100)]
    assert [found[k] for k in (10, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine():
    found = [lr for lr, _ in rates(*make("WarmupCosineLR"), 100)]
    assert found[50] == pytest.approx(0.5)
    assert found[90] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR"])
def test_a_resumed_schedule_goes_on(name):
    whole = rates(*make(name), 100)
    optimizer, scheduler = make(name)
    rates(optimizer, scheduler, 42)
    state, scheduler_state = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = make(name)
    optimizer.load_state_dict(state)
    scheduler.load_state_dict(scheduler_state)
    assert rates(optimizer, scheduler, 58) == whole[42:]


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ConfigError, match="'WarmupPoly' is not one of WarmupMultiStepLR, WarmupCosineLR, WarmupPolyLR"):
        make("WarmupPoly")

"""Learning rate and weight decay of each parameter, and gradient clipping."""

import math

import pytest
import torch
from helpers.tiny_training import TinyBackbone
from torch import nn

from sohes_d2.config.load import load_config
from sohes_d2.engine.optimizer import GroupRules, build_lr_scheduler, build_optimizer, parameter_groups
from sohes_d2.errors import ConfigError

from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TinyBackbone()
        self.backbone.block1.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.plain = nn.Module()
        self.plain.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), FrozenBatchNorm2d(4))
        self.norms = nn.ModuleList([nn.LayerNorm(4), nn.GroupNorm(2, 4), NaiveSyncBatchNorm(4)])
        self.queries = nn.Embedding(3, 4)
        self.scale = LayerScale()
        self.attention = nn.MultiheadAttention(4, 2)
        self.tied = self.attention.out_proj
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def by_name(model, rules):
    found = {id(p): group for group in parameter_groups(model, rules) for p in group["params"]}
    return {
        name: (found[id(p)]["lr"], found[id(p)]["weight_decay"])
        for name, p in model.named_parameters()
        if id(p) in found
    }


def test_every_parameter_has_its_rate_and_decay():
    rules = GroupRules(
        base_lr=1.0,
        backbone_multiplier=0.1,
        layer_decay=0.5,
        weight_decay=0.05,
        weight_decay_norm=0.01,
        weight_decay_embed=0.02,
    )
    found = by_name(Model(), rules)
    assert found["backbone.adapter.weight"] == (1.0, 0.05)  # not pretrained
    assert found["backbone.block2.weight"] == (pytest.approx(0.1), 0.05)
    assert found["backbone.block1.weight"] == (pytest.approx(0.05), 0.05)
    assert found["backbone.block1.pos_embed"] == (pytest.approx(0.05), 0.02)
    assert found["backbone.patch_embed.bias"] == (pytest.approx(0.025), 0.05)
    assert found["plain.backbone.0.weight"] == (pytest.approx(0.1), 0.05)  # a backbone without layers
    assert found["plain.backbone.1.weight"] == (pytest.approx(0.1), 0.01)
    for k in range(3):
        assert found[f"norms.{k}.weight"] == found[f"norms.{k}.bias"] == (1.0, 0.01)
    assert found["queries.weight"] == (1.0, 0.02)
    assert found["scale.gamma"] == (1.0, 0.01)
    assert found["attention.in_proj_weight"] == found["attention.in_proj_bias"] == (1.0, 0.05)
    assert "frozen.weight" not in found


def test_biases_can_have_their_own_rate_and_decay():
    found = by_name(Model(), GroupRules(base_lr=1.0, bias_lr_factor=2.0, weight_decay=0.05, weight_decay_bias=0.0))
    assert found["attention.in_proj_bias"] == (2.0, 0.0)
    assert found["attention.in_proj_weight"] == (1.0, 0.05)
    assert found["norms.0.bias"] == (1.0, 0.0)


def test_parameters_come_once_in_few_groups():
    model = Model()
    groups = parameter_groups(model, GroupRules(base_lr=1.0, backbone_multiplier=0.1, weight_decay=0.05))
    params = [id(p) for group in groups for p in group["params"]]
    assert len(params) == len(set(params)) == sum(p.requires_grad for p in model.parameters())
    assert len(groups) == len({(group["lr"], group["weight_decay"]) for group in groups}) == 4


def optimizer_for(model, **keys):
    cfg = load_config("")
    cfg.SOLVER.BASE_LR = 1.0
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    for key, value in keys.items():
        node, _, leaf = key.rpartition("__")
        (cfg.SOLVER[node] if node else cfg.SOLVER)[leaf] = value
    return build_optimizer(cfg, model)


def two_weights(*gradients):
    model = nn.ParameterList([nn.Parameter(torch.zeros(2, 2)) for _ in gradients])
    for parameter, gradient in zip(model, gradients):
        parameter.grad = torch.full((2, 2), gradient)
    return model


@pytest.mark.parametrize(
    ("kind", "limit", "expected"),
    [
        # gradients of norm 6 and 8, with a total norm of 10
        ("full_model", 1.0, (0.3, 0.4)),
        ("norm", 1.0, (0.5, 0.5)),
        ("value", 3.5, (3.0, 3.5)),
    ],
)
def test_gradients_are_clipped_at_the_step(kind, limit, expected):
    model = two_weights(3.0, 4.0)
    clipping = {"CLIP_GRADIENTS__ENABLED": True, "CLIP_GRADIENTS__CLIP_TYPE": kind, "CLIP_GRADIENTS__CLIP_VALUE": limit}
    optimizer = optimizer_for(model, OPTIMIZER="SGD", MOMENTUM=0.0, **clipping)
    optimizer.step()
    for parameter, value in zip(model, expected):
        torch.testing.assert_close(parameter.detach(), torch.full((2, 2), -value), atol=1e-5, rtol=0)
    assert kind != "full_model" or optimizer.grad_norm == pytest.approx(10.0)


@pytest.mark.parametrize("broken", [float("inf"), float("nan")])
def test_gradients_that_are_not_finite_leave_the_weights_alone(broken):
    model = two_weights(3.0, broken)
    optimizer = optimizer_for(model, CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="full_model")
    with pytest.raises(FloatingPointError, match="the step was not taken"):
        optimizer.step()
    assert all(not parameter.any() for parameter in model)


def test_no_clipping_unless_enabled():
    model = two_weights(3.0)
    optimizer_for(model, OPTIMIZER="SGD", MOMENTUM=0.0).step()
    assert model[0][0, 0].item() == -3.0


def test_adamw_is_decoupled_from_the_decay():
    model = two_weights(0.0)
    with torch.no_grad():
        model[0].fill_(1.0)
    optimizer_for(model, BASE_LR=0.1, WEIGHT_DECAY=0.5).step()
    assert model[0][0, 0].item() == pytest.approx(1 - 0.1 * 0.5)


def test_unknown_parameters_are_reported():
    with pytest.raises(ConfigError, match="OPTIMIZER 'ADAM' is not one of ADAMW, SGD"):
        optimizer_for(two_weights(0.0), OPTIMIZER="ADAM")
    with pytest.raises(ConfigError, match="CLIP_TYPE 'total' is not one of full_model, norm, value"):
        optimizer_for(two_weights(0.0), CLIP_GRADIENTS__ENABLED=True, CLIP_GRADIENTS__CLIP_TYPE="total")
    with pytest.raises(ConfigError, match="no trainable parameters"):
        optimizer_for(nn.Linear(2, 2).requires_grad_(False))


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


def test_poly_decreases_to_zero_after_the_warm_up():
    found = rates(*make("WarmupPolyLR"), 100)
    assert found[0] == pytest.approx((0.1, 0.01))
    assert found[5][0] == pytest.approx((0.1 + 0.9**0.9) / 2)  # half-way to the curve
    for iteration in (10, 50, 99):
        factor = (1 - iteration / 100) ** 0.9
        assert found[iteration] == pytest.approx((factor, 0.1 * factor))


def test_the_power_of_poly_is_configurable():
    assert rates(*make("WarmupPolyLR", POLY_LR_POWER=2.0), 51)[50][0] == pytest.approx(0.25)


def test_warm_up_is_optional():
    assert rates(*make("WarmupPolyLR", WARMUP_ITERS=0), 1)[0] == pytest.approx((1.0, 0.1))


def test_steps():
    found = [lr for lr, _ in rates(*make("WarmupMultiStepLR"), 100)]
    assert [found[k] for k in (10, 49, 50, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine():
    found = [lr for lr, _ in rates(*make("WarmupCosineLR"), 100)]
    assert found[50] == pytest.approx(0.5)
    assert found[90] == pytest.approx((1 + math.cos(0.9 * math.pi)) / 2)


@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupMultiStepLR", "WarmupCosineLR"])
def test_a_resumed_schedule_continues(name):
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

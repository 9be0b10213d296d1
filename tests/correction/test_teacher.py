"""EMA updates of the teacher, and their momentum."""

import pytest
import torch
from torch import nn

from sohes_d2.correction.teacher import MomentumSchedule, teacher_of, update_teacher


def student():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


@pytest.mark.parametrize("schedule", [MomentumSchedule(0.9996), MomentumSchedule(0.9, warmup=20)])
def test_the_teacher_equals_the_closed_form(schedule):
    """A weighted sum of the student's states, with weights (1 - momentum) times all later momenta."""
    model = student()
    teacher = teacher_of(model)
    states = [[p.detach().double() for p in model.parameters()]]
    momenta = []
    for t in range(50):
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn_like(p))
        states.append([p.detach().double() for p in model.parameters()])
        momenta.append(schedule.at(t))
        update_teacher(teacher, model, momenta[-1])
    weights = [1.0]
    for m in momenta:
        weights = [w * m for w in weights] + [1 - m]
    assert sum(weights) == pytest.approx(1)
    for k, found in enumerate(teacher.parameters()):
        wanted = sum(w * state[k] for w, state in zip(weights, states))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=1e-6)


def test_a_teacher_equal_to_the_student_stays_exactly_equal():
    model = student()
    teacher = teacher_of(model)
    for _ in range(20):
        update_teacher(teacher, model, 0.9996)
    assert all(torch.equal(p, q) for p, q in zip(teacher.parameters(), model.parameters()))


def test_buffers_are_copied():
    model = student()
    teacher = teacher_of(model)
    for k in range(3):
        model(torch.randn(8, 3) + k)
    update_teacher(teacher, model, 0.9)
    assert teacher[1].num_batches_tracked == 3
    assert torch.equal(teacher[1].running_mean, model[1].running_mean)
    assert teacher[1].running_mean.abs().max() > 0


def test_a_teacher_has_no_gradient_and_its_own_memory():
    model = student()
    teacher = teacher_of(model)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert teacher[0].weight.abs().max() > 0


def test_half_precision_is_refused():
    model = student().bfloat16()
    with pytest.raises(TypeError, match="torch.bfloat16, too coarse for a moving average"):
        update_teacher(teacher_of(model), model, 0.9)


def test_momentum_warms_up():
    schedule = MomentumSchedule(0.99, warmup=33)
    windows = [1 / (1 - schedule.at(t)) for t in range(40)]
    assert schedule.at(0) == 0  # copies the student
    assert windows[11] == pytest.approx(1 + 99 / 3)  # a third of the way from 1 to 100
    assert windows[33:] == [1 / (1 - 0.99)] * 7
    assert MomentumSchedule(0.99).at(0) == 0.99


def test_the_longest_warm_up_is_that_of_mean_teacher():
    schedule = MomentumSchedule(0.99, warmup=99)
    for t in (0, 1, 5, 98, 99, 500):
        assert schedule.at(t) == pytest.approx(min(1 - 1 / (t + 1), 0.99))


def test_invalid_momenta_are_refused():
    assert MomentumSchedule(1.0, warmup=5).at(0) == 1.0
    with pytest.raises(ValueError, match="EMA_MOMENTUM"):
        MomentumSchedule(1.1)
    with pytest.raises(ValueError, match="EMA_WARMUP"):
        MomentumSchedule(0.9, warmup=-1)

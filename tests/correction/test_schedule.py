"""Schedules of branch weights and EMA momentum."""

import pytest

from sohes_d2.correction.schedule import BranchSchedule, MomentumSchedule


@pytest.mark.parametrize(
    ("shape", "quarter", "half", "last"),
    [
        # cos(pi / 4) = 0.70711
        ("cosine", (1 - 0.146447, 2 + 0.146447), (0.5, 2.5), (0.0, 3.0)),
        ("linear", (0.75, 2.25), (0.5, 2.5), (0.0, 3.0)),
        ("constant", (1.0, 2.0), (1.0, 2.0), (1.0, 2.0)),
    ],
)
def test_branches_move_from_start_to_end(shape, quarter, half, last):
    schedule = BranchSchedule((1.0, 0.0), (2.0, 3.0), shape)
    assert schedule.at(0, 80) == (1.0, 2.0)
    assert schedule.at(20, 80) == pytest.approx(quarter, abs=1e-6)
    assert schedule.at(40, 80) == pytest.approx(half)
    assert schedule.at(80, 80) == schedule.at(99, 80) == pytest.approx(last)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "step"}, "'step' is not one of cosine, linear, constant"),
        ({"initial": (1.0,)}, "INITIAL_WEIGHT must be two numbers"),
        ({"teacher": (-1.0, 1.0)}, "TEACHER_WEIGHT must be two numbers"),
        ({"initial": (1.0, 0.0), "teacher": (0.0, 0.0)}, "both 0 at the end"),
        ({"initial": (0.0, 1.0), "teacher": (0.0, 1.0)}, "both 0 at the start"),
    ],
)
def test_invalid_branch_weights_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BranchSchedule(**settings)


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

"""Training of phase 3: branch weights, EMA updates, resuming, pictures, collapse detection."""

import json

import pytest
import torch
from helpers.mutual_training import mutual_cfg, plain_model, write_phase2

from sohes_d2.correction import MutualLearningHook
from sohes_d2.correction.hooks import BranchSchedule
from sohes_d2.correction.thresholds import Threshold
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.errors import ConfigError, SOHESError

from detectron2.engine import HookBase

pytestmark = pytest.mark.usefixtures("scenes")


@pytest.fixture(scope="module")
def phase2(tmp_path_factory):
    return write_phase2(tmp_path_factory.mktemp("phase2") / "model_final.pth")


class Recorder(HookBase):
    """Records the metrics of every iteration and calls ``act``; stops after ``stop_after`` iterations."""

    def __init__(self, stop_after=None, act=lambda trainer: None):
        self.numbers = []
        self._stop_after = stop_after
        self._act = act

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.numbers.append({name: value for name, (value, _) in latest.items() if "time" not in name})
        self._act(self.trainer)
        if self.trainer.iter + 1 == self._stop_after:
            raise KeyboardInterrupt


def train(cfg, resume=False, **recording):
    torch.manual_seed(0)
    trainer = SOHESTrainer(cfg)
    recorder = Recorder(**recording)
    trainer.register_hooks([recorder])
    trainer.resume_or_load(resume)
    try:
        trainer.train()
    except KeyboardInterrupt:
        pass
    return trainer, recorder


def mutual_hook(trainer):
    [hook] = [hook for hook in trainer._hooks if isinstance(hook, MutualLearningHook)]
    return hook


def test_three_iterations_and_three_after_a_resume_equal_six(tmp_path, phase2):
    def make_cfg(output):
        cfg = mutual_cfg(output, phase2, MAX_ITER=6, CHECKPOINT_PERIOD=3)
        cfg.CORRECTION.EMA_WARMUP = 5
        cfg.CORRECTION.GUARD.PERIOD = 4  # the stop is within a period
        return cfg

    whole_trainer, whole = train(make_cfg(tmp_path / "whole"))
    _, first = train(make_cfg(tmp_path / "parts"), stop_after=3)
    second_trainer, second = train(make_cfg(tmp_path / "parts"), resume=True)
    assert (len(first.numbers), len(second.numbers)) == (3, 3)
    assert whole.numbers == first.numbers + second.numbers
    found, wanted = second_trainer.model.state_dict(), whole_trainer.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in wanted.items())
    states = [mutual_hook(trainer).state_dict() for trainer in (second_trainer, whole_trainer)]
    assert [state["updates"] for state in states] == [6, 6]
    assert len(states[0]["guard"]["labels"]) == 2
    assert states[0]["guard"] == states[1]["guard"]

    initial = plain_model().state_dict()
    moved = [name for name, value in initial.items() if not torch.equal(value, wanted[f"teacher.{name}"])]
    assert len(moved) > 100
    assert any(not torch.equal(wanted[f"student.{name}"], wanted[f"teacher.{name}"]) for name in moved)

    momenta = [numbers["correction/ema_momentum"] for numbers in whole.numbers]
    assert momenta == pytest.approx([1 - 1 / (1 + 9 * min(t / 5, 1)) for t in range(6)])
    weights = [(n["correction/initial_weight"], n["correction/teacher_weight"]) for n in whole.numbers]
    assert weights[0] == (1.0, 2.0)
    assert weights[3] == pytest.approx((0.5, 2.5))
    for numbers in whole.numbers:
        assert 0 < numbers["correction/labels_per_image"] <= 5
        assert 0 < numbers["correction/mean_score"] < 1
        assert 0 <= numbers["correction/disagreement"] <= 1
        losses = [value for name, value in numbers.items() if "/loss_" in name]
        assert sum(losses) == pytest.approx(numbers["total_loss"], rel=1e-5)
    last = json.loads((tmp_path / "whole" / "metrics.json").read_text().splitlines()[-1])
    assert {"correction/labels_per_image", "correction/disagreement", "teacher/loss_mask"} <= last.keys()


def test_the_checkpoint_of_an_iteration_has_its_teacher(tmp_path, phase2):
    teachers = []
    train(
        mutual_cfg(tmp_path, phase2, MAX_ITER=2, CHECKPOINT_PERIOD=1),
        act=lambda trainer: teachers.append(next(trainer.model.teacher.parameters()).clone()),
    )
    for k, teacher in enumerate(teachers):
        content = torch.load(tmp_path / f"model_{k:07d}.pth", weights_only=True)
        name = next(name for name in content["model"] if name.startswith("teacher."))
        assert torch.equal(content["model"][name], teacher)
        assert content["trainer"]["hooks"]["MutualLearningHook"]["updates"] == k + 1


class Nothing(Threshold):
    """A threshold that no mask passes."""

    def __call__(self, areas, scores):
        return torch.zeros_like(scores, dtype=torch.bool)


def test_a_collapse_stops_and_names_the_last_good_checkpoint(tmp_path, phase2):
    def forget(trainer):
        if trainer.iter == 3:
            trainer.model.targets.threshold = Nothing()

    cfg = mutual_cfg(tmp_path, phase2, CHECKPOINT_PERIOD=1)
    cfg.CORRECTION.GUARD.PERIOD, cfg.CORRECTION.GUARD.PATIENCE = 2, 2
    # healthy periods end in iterations 1 and 3, when the last checkpoint is that of 2; the others in 5 and 7
    with pytest.raises(SOHESError, match=r"(?s)in iteration 7: the teacher had 0 labels.*model_0000002\.pth\. Lower"):
        train(cfg, act=forget)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000006.pth"


def test_a_teacher_with_nan_outputs_stops_at_once(tmp_path, phase2):
    def poison(trainer):
        with torch.no_grad():
            next(trainer.model.teacher.parameters()).fill_(float("nan"))

    with pytest.raises(SOHESError, match="(?s)in iteration 1: the teacher's outputs are not finite.*no checkpoint"):
        train(mutual_cfg(tmp_path, phase2), act=poison)


def test_labels_are_drawn_periodically(tmp_path, phase2):
    cfg = mutual_cfg(tmp_path, phase2, MAX_ITER=3)
    cfg.TEST.VISUALIZE = 1
    cfg.SOLVER.IMS_PER_BATCH = 1
    drawn = []

    class Watch(HookBase):
        def before_step(self):
            self.trainer.storage.put_image = lambda name, image: drawn.append((name, image))

    trainer = SOHESTrainer(cfg)
    trainer.register_hooks([Watch()])
    trainer.resume_or_load(False)
    trainer.train()
    assert [name for name, _ in drawn] == ["correction/teacher_labels", "correction/student_view"] * 3
    assert all(image.shape[0] == 3 and image.dtype == "uint8" and image.std() > 5 for _, image in drawn)
    assert drawn[0][1].shape[2] == 1200
    assert drawn[1][1].shape == (3, 64, 64)


def test_phase_3_needs_a_model_to_start_from(tmp_path):
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS is empty"):
        SOHESTrainer(mutual_cfg(tmp_path)).resume_or_load(False)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WEIGHT_SCHEDULE", "step", "WEIGHT_SCHEDULE 'step' is not one of"),
        ("EVALUATE", "both", "EVALUATE 'both' is not one of"),
        ("EMA_MOMENTUM", 2.0, "EMA_MOMENTUM must lie"),
    ],
)
def test_invalid_settings_are_config_errors(tmp_path, key, value, message):
    cfg = mutual_cfg(tmp_path)
    cfg.CORRECTION[key] = value
    with pytest.raises(ConfigError, match=message):
        SOHESTrainer(cfg)


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

"""Whole trainings: exact resume, evaluation, pictures, errors."""

import json
import os

import pytest
import torch
from helpers.tiny_training import TinySegmenter, sohes_cfg, tiny_cfg

from sohes_d2.data.training.views import needs_teacher_view
from sohes_d2.engine.hooks import annotated_forest
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.engine.writers import MetricsWriter
from sohes_d2.errors import ConfigError, WeightsError

from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.modeling import META_ARCH_REGISTRY

pytestmark = pytest.mark.usefixtures("scenes")


class Recorder(HookBase):
    """Records losses and learning rate of every iteration; stops after ``stop_after`` iterations."""

    def __init__(self, stop_after=None):
        self.losses = []
        self.rates = []
        self.images = []
        self._stop_after = stop_after

    def after_step(self):
        latest = self.trainer.storage.latest()
        self.losses.append({name: value for name, (value, _) in latest.items() if "loss" in name})
        self.rates.append(latest["lr"][0])
        if self._stop_after is not None and self.trainer.iter + 1 == self._stop_after:
            raise KeyboardInterrupt


def train(cfg, resume=False, stop_after=None, prepare=lambda trainer: None):
    torch.manual_seed(0)  # as Detectron2's default_setup does, for the initial weights
    trainer = SOHESTrainer(cfg)
    recorder = Recorder(stop_after)
    trainer.register_hooks([recorder])
    prepare(trainer)
    trainer.resume_or_load(resume)
    try:
        trainer.train()
    except KeyboardInterrupt:
        assert stop_after is not None
    return trainer, recorder


def assert_same_in_parts(folder, make_cfg, half):
    """Assert that 2 * ``half`` iterations give the same results in one run and in two."""
    initial = SOHESTrainer(make_cfg(folder / "initial")).model.state_dict()
    whole_trainer, whole = train(make_cfg(folder / "whole"))
    _, first = train(make_cfg(folder / "parts"), stop_after=half)
    second_trainer, second = train(make_cfg(folder / "parts"), resume=True)
    assert second_trainer.start_iter == len(first.losses) == len(second.losses) == half
    assert whole.losses == first.losses + second.losses
    assert whole.rates == first.rates + second.rates
    assert len({loss["total_loss"] for loss in whole.losses}) == 2 * half
    final = second_trainer.model.state_dict()
    for name, value in whole_trainer.model.state_dict().items():
        assert torch.equal(value, final[name]), name
    assert any(not torch.equal(value, initial[name]) for name, value in final.items())


@pytest.mark.parametrize("amp", [False, True])
def test_ten_iterations_and_ten_after_a_resume_equal_twenty(tmp_path, amp):
    def make_cfg(output):
        cfg = tiny_cfg(output)
        cfg.SOLVER.AMP.ENABLED = amp
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
        cfg.MODEL.VIT.DROP_PATH = 0.5  # randomness inside the model
        return cfg

    assert_same_in_parts(tmp_path, make_cfg, half=10)


def test_the_real_model_resumes_exactly(tmp_path):
    def make_cfg(output):
        cfg = sohes_cfg(output, MAX_ITER=6, CHECKPOINT_PERIOD=3)
        cfg.MODEL.VIT.DROP_PATH = 0.5
        return cfg

    assert_same_in_parts(tmp_path, make_cfg, half=3)


def test_iterations_have_their_own_randomness(tmp_path):
    """The same weights and images give different losses in each iteration, because of dropout."""
    cfg = tiny_cfg(tmp_path, BASE_LR=0.0, MAX_ITER=4)
    cfg.MODEL.VIT.DROP_PATH = 0.5
    batches = []

    def always_the_first(trainer):
        def feed(loader, seed, original=trainer._trainer.feed):
            batches.append(next(iter(loader)))
            original(loader, seed)
            trainer._trainer._batches = iter(batches * 4)

        trainer._trainer.feed = feed

    _, recorder = train(cfg, prepare=always_the_first)
    assert len({loss["total_loss"] for loss in recorder.losses}) == 4


def test_a_drawn_seed_is_kept(tmp_path):
    def config():
        cfg = tiny_cfg(tmp_path, CHECKPOINT_PERIOD=2, MAX_ITER=4)
        cfg.SEED = -1
        return cfg

    first, _ = train(config(), stop_after=2)
    second, _ = train(config(), resume=True)
    assert first.cfg.SEED >= 0
    assert second.cfg.SEED == first.cfg.SEED


def test_metrics_go_to_the_file_of_detectron2(tmp_path):
    train(tiny_cfg(tmp_path))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    found = lines[-1]
    assert found["iteration"] == 19
    assert {"total_loss", "loss_share", "lr", "data_time", "time", "skipped_images"} <= found.keys()
    assert found["skipped_images"] == 0


def test_broken_images_are_counted(tmp_path, scenes):
    """Two of eight images are broken; an epoch reads both."""

    def records():
        good = DatasetCatalog.get("tiny_scenes")
        return good + [{**good[k], "file_name": str(tmp_path / f"none{k}.png")} for k in range(2)]

    DatasetCatalog.register("with_broken", records)
    try:
        train(tiny_cfg(tmp_path, train=("with_broken",), MAX_ITER=4))
    finally:
        DatasetCatalog.remove("with_broken")
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert json.loads(lines[-1])["skipped_images"] == 2


def test_evaluation_runs_periodically_and_at_the_end(tmp_path, monkeypatch):
    cfg = tiny_cfg(tmp_path, test=("tiny_scenes",), MAX_ITER=6)
    cfg.TEST.EVAL_PERIOD = 4
    written = []
    from sohes_d2.engine import trainer as module

    original = module.write_evaluation
    monkeypatch.setattr(module, "write_evaluation", lambda *a: (written.append(a[3]), original(*a)))
    train(cfg)
    assert written == [4, 6]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["iteration"] == 6
    assert list(found["results"]) == ["tiny_scenes"]
    segm = found["results"]["tiny_scenes"]["segm"]
    assert segm["AR@1"] == segm["AR@1000"]  # one mask per image
    assert 0 <= segm["AR@1000"] <= 100
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["segm/AR@1000"] == segm["AR@1000"]
    assert segm["AR@1000-large"] is None  # there are no large entities
    assert "segm/AR@1000-large" not in last
    assert os.path.isfile(tmp_path / "inference" / "tiny_scenes" / "entity_results.json")


def test_examples_are_drawn(tmp_path):
    cfg = tiny_cfg(tmp_path, test=("tiny_scenes",), MAX_ITER=2)
    cfg.TEST.VISUALIZE = 2
    drawn = []

    def watch(trainer):
        class Watch(HookBase):
            def after_step(self):
                storage = self.trainer.storage
                put = storage.put_image
                if not drawn:
                    storage.put_image = lambda name, image: (drawn.append((name, image)), put(name, image))

        trainer.register_hooks([Watch()])

    trainer, _ = train(cfg, prepare=watch)
    assert [name for name, _ in drawn] == [
        f"examples/{k}/{kind}" for k in (0, 1) for kind in ("predicted", "annotated")
    ]
    for _, image in drawn:
        assert image.shape[0] == 3
        assert image.dtype == "uint8"
        assert image.std() > 10
    assert trainer.model.training  # restored after drawing


def test_missing_parents_are_computed_by_coverage():
    def square(side):
        return {"segmentation": [[0, 0, side, 0, side, side, 0, side]], "bbox": [0, 0, side, side]}

    forest = annotated_forest({"annotations": [square(20), square(8)]}, (32, 32))
    assert forest.parents.tolist() == [-1, 0]
    assert annotated_forest({"annotations": []}, (32, 32)) is None
    assert annotated_forest({}, (32, 32)) is None


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path):
    class Poison(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                with torch.no_grad():
                    self.trainer.model.head.weight.fill_(float("nan"))

    cfg = tiny_cfg(tmp_path, CHECKPOINT_PERIOD=2)
    with pytest.raises(FloatingPointError, match="(?s)in iteration 3.*model_0000001.pth.*BASE_LR"):
        train(cfg, prepare=lambda trainer: trainer.register_hooks([Poison()]))
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


@pytest.mark.parametrize(
    ("weights", "expected"), [("", "hub:vit_base_patch8_224.dino"), ("my.pth", "my.pth"), ("random", None)]
)
def test_the_backbone_is_pretrained_by_default(tmp_path, weights, expected):
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.VIT.WEIGHTS = weights
    trainer = SOHESTrainer(cfg)
    trainer.resume_or_load(resume=False)
    assert trainer.model.backbone.loaded_from == expected


def test_the_backbone_is_not_pretrained_when_weights_come_from_a_checkpoint(tmp_path):
    first, _ = train(tiny_cfg(tmp_path / "first", MAX_ITER=2))
    cfg = tiny_cfg(tmp_path / "second")
    cfg.MODEL.WEIGHTS = str(tmp_path / "first" / "model_final.pth")
    started = SOHESTrainer(cfg)
    started.resume_or_load(resume=True)  # nothing to resume
    resumed = SOHESTrainer(tiny_cfg(tmp_path / "first"))
    resumed.resume_or_load(resume=True)
    assert (started.start_iter, resumed.start_iter) == (0, 2)
    for trainer in (started, resumed):
        assert trainer.model.backbone.loaded_from is None
        assert torch.equal(trainer.model.head.weight, first.model.head.weight)


def test_config_errors_are_reported(tmp_path):
    with pytest.raises(ConfigError, match="POLY"):
        SOHESTrainer(tiny_cfg(tmp_path, LR_SCHEDULER_NAME="POLY"))
    with pytest.raises(ConfigError, match="IMS_PER_BATCH is 0"):
        SOHESTrainer(tiny_cfg(tmp_path, IMS_PER_BATCH=0))
    cfg = tiny_cfg(tmp_path)
    cfg.MODEL.WEIGHTS = "none.pth"
    with pytest.raises(WeightsError, match="'none.pth' does not exist"):
        SOHESTrainer(cfg).resume_or_load(resume=True)


def test_damaged_lines_of_metrics_are_reported(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    path.write_bytes(b'{"iteration": 0}\n{"iteration": \xb1}\n{"iteration": 2}\n')
    MetricsWriter(str(path)).close()
    assert len(caplog.records) == 1 and "line 2 " in caplog.text and str(path) in caplog.text


@META_ARCH_REGISTRY.register()
class DemandingSegmenter(TinySegmenter):
    """A model that declares its requirements by attributes."""

    needs_teacher_view = True
    starts_from = "a tiny model"

    def build_hooks(self, cfg, last_checkpoint):
        self.steps = []
        self.last_checkpoint = last_checkpoint
        hook = HookBase()
        hook.after_step = lambda: self.steps.append(last_checkpoint())
        return [hook]


def test_a_model_declares_what_it_needs(tmp_path):
    cfg = tiny_cfg(tmp_path, MAX_ITER=2)
    cfg.MODEL.META_ARCHITECTURE = "DemandingSegmenter"
    assert needs_teacher_view(cfg) and not needs_teacher_view(tiny_cfg(tmp_path))
    trainer = SOHESTrainer(cfg)
    with pytest.raises(ConfigError, match="DemandingSegmenter starts from a tiny model"):
        trainer.resume_or_load(resume=False)
    trainer.train()
    assert trainer.model.steps == ["", ""]  # before the hook that saves
    assert trainer.model.last_checkpoint() == str(tmp_path / "model_final.pth")

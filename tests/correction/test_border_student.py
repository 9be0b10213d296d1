"""The border student: loss, teacher, and training."""

import math

import numpy as np
import pytest
import torch
from helpers.tiny_training import sohes_cfg

from sohes_d2.correction import BorderStudent
from sohes_d2.correction.border_student import border_targets
from sohes_d2.data.training.border_counts import OUTSIDE, BorderCountMapper
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.exploration.border_network import BorderNetwork, LearnedBorders


def student(**options):
    torch.manual_seed(0)
    return BorderStudent(network=BorderNetwork((4, 6)), **{"jitter": 0.0, **options})


def batch(counts):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *counts.shape), np.uint8))
    return [{"image": image, "border_counts": counts.to(torch.int16)}]


def test_targets():
    target = border_targets(torch.tensor([OUTSIDE, 0, 1, 64, 200]), 64)
    torch.testing.assert_close(target, torch.tensor([0, 0, math.log(2) / math.log(65), 1, 1]))


def test_the_loss_is_weighted_cross_entropy_without_padding():
    model = student(border_weight=3.0, count=64).train()
    counts = torch.tensor([[0, 64, 8, 0], [0, 64, OUTSIDE, OUTSIDE]]).repeat_interleave(4, 0).repeat_interleave(2, 1)
    inside = counts != OUTSIDE
    inputs = batch(counts)
    loss = model(inputs)["loss_border"]
    with torch.no_grad():
        p = torch.sigmoid(model.student(inputs[0]["image"][None].float()))[0][inside]
    t = border_targets(counts, 64)[inside]
    expected = -(1 + 3 * t) * (t * p.log() + (1 - t) * (1 - p).log())
    torch.testing.assert_close(loss, expected.mean())


def test_the_teacher_is_an_ema_and_predicts():
    model = student(momentum=0.5).train()
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 1
    before = [parameter.clone() for parameter in model.teacher.parameters()]
    inputs = batch(torch.zeros(8, 8))
    model(inputs)  # the first update copies the student's weights
    for old, new, own in zip(before, model.teacher.parameters(), model.student.parameters()):
        assert torch.equal(new, own) and not torch.equal(new, old)
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter += 1
    model(inputs)  # the second has momentum 1 / 11
    for new, own in zip(model.teacher.parameters(), model.student.parameters()):
        torch.testing.assert_close(own - new, torch.full_like(own, 1 / 11), atol=1e-4, rtol=0)
    assert not model.teacher.training and model.student.training
    model.eval()
    with torch.no_grad():
        answer = model(inputs)[0]["border_strength"]
        torch.testing.assert_close(answer, torch.sigmoid(model.teacher(inputs[0]["image"][None].float()))[0])


@pytest.mark.parametrize("wrong", [{"count": 0}, {"border_weight": -1}, {"jitter": 1.0}, {"momentum": 1.0}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="BORDER_NETWORK"):
        student(**wrong)


def test_it_trains_on_a_label_file_and_its_checkpoint_is_used_in_phase_one(scenes, tmp_path):
    cfg = sohes_cfg(str(tmp_path), MAX_ITER=4, IMS_PER_BATCH=2)
    cfg.MODEL.META_ARCHITECTURE = "BorderStudent"
    cfg.MODEL.BORDER_NETWORK.CHANNELS = [4, 6]
    cfg.INPUT.IMAGE_SIZE = 32
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("tiny_scenes",), ()
    assert isinstance(SOHESTrainer.build_mapper(cfg, is_train=True), BorderCountMapper)
    trainer = SOHESTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    borders = LearnedBorders(str(tmp_path / "model_final.pth"))
    for own, loaded in zip(trainer.model.teacher.parameters(), borders.network.parameters()):
        assert torch.equal(own, loaded)

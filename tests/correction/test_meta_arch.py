"""The teacher-student model: views, losses, checkpoints, and evaluation."""

import logging

import pytest
import torch
from helpers.mutual_training import batch, mutual_cfg, mutual_model, plain_cfg, plain_model, write_phase2

from sohes_d2.engine.optimizer import GroupRules, parameter_groups
from sohes_d2.weights.checkpoint import SOHESCheckpointer

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model

NAMES = ["loss_ce", "loss_mask", "loss_dice", "loss_ancestor"]
SUFFIXES = ("", "_0", "_1")
CHECKPOINTERS = [SOHESCheckpointer, DetectionCheckpointer]


def losses_of(model, inputs):
    torch.manual_seed(1)
    return model(inputs)


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def values(losses):
    return {name: loss.item() for name, loss in losses.items()}


def test_both_branches_have_all_losses():
    model = mutual_model()
    losses = losses_of(model, batch())
    assert sorted(losses) == sorted(
        f"{branch}/{name}{suffix}" for branch in ("initial", "teacher") for name in NAMES for suffix in SUFFIXES
    )
    assert all(loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.student.parameters())
    assert all(p.grad is None for p in model.teacher.parameters())


def test_the_initial_branch_is_the_loss_of_phase_2_times_its_weight():
    model = mutual_model()
    model.branch_weights = (0.5, 0.0)
    found = values(losses_of(model, batch()))
    wanted = values(losses_of(plain_model().train(), batch()))
    assert found.keys() == {f"initial/{name}" for name in wanted}
    for name, value in wanted.items():
        assert found[f"initial/{name}"] == pytest.approx(value / 2, rel=1e-5), name
    assert model.statistics is None  # the teacher was not used


def test_the_teacher_uses_raw_scores_for_labels_and_calibrated_ones_for_predictions():
    cfg = mutual_cfg("")
    cfg.CORRECTION.THRESHOLD.NAME, cfg.CORRECTION.THRESHOLD.FIXED = "fixed", 0.2
    models = []
    for knots in ([], [[0, 0], [0.9, 0.01], [1, 0.02]]):
        cfg.TEST.SCORE_CALIBRATION = knots
        models.append(build_model(cfg))
        models[-1].load_state_dict(plain_model().state_dict())
    seen = []
    for model in models:
        model.observer = lambda inputs, targets: seen.append(targets)
    raw, other = (values(losses_of(model.train(), batch())) for model in models)
    assert raw == other
    for one, two in zip(*seen, strict=True):
        assert len(one["scores"]) > 0
        assert torch.equal(one["scores"], two["scores"]) and torch.equal(one["masks"], two["masks"])
    inputs = [{"image": x["image"]} for x in batch()]
    raw, calibrated = (model.eval()(inputs)[0]["instances"].scores for model in models)
    torch.testing.assert_close(calibrated, raw / 90)


def test_the_teacher_branch_is_scaled_by_its_weight():
    model = mutual_model()
    model.branch_weights = (0.0, 1.0)
    once = values(losses_of(model, batch()))
    assert all(name.startswith("teacher/") for name in once)
    model.branch_weights = (0.0, 3.0)
    for name, value in values(losses_of(model, batch())).items():
        assert value == pytest.approx(3 * once[name], rel=1e-5)


def test_the_student_learns_the_teachers_predictions_on_the_weak_view():
    """Its labels are the predictions of the plain model on the weak view, by descending score."""
    model = mutual_model()
    seen = []
    model.observer = lambda inputs, targets: seen.append((inputs, targets))
    inputs = batch()
    model(inputs)
    [(observed, targets)] = seen
    assert observed is inputs
    plain = plain_model().eval()
    with torch.no_grad():
        outputs = plain([{"image": x["image_weak"]} for x in inputs])
    for target, output in zip(targets, outputs):
        assert 0 < len(target["scores"]) <= 5
        best = output["instances"]
        torch.testing.assert_close(target["scores"][0], best.scores[0])
        assert torch.equal(target["masks"][0], torch.as_tensor(best.pred_masks[0]).squeeze(0).bool())


def test_predictions_in_the_padding_are_not_learned():
    model = mutual_model()
    seen = []
    model.observer = lambda inputs, targets: seen.append(targets)
    inputs = batch()
    model(inputs)
    height, width = inputs[0]["image_weak"].shape[-2:]
    inputs[0]["photo_size"] = (height // 2, width)
    model(inputs)
    (before, other_before), (after, other_after) = seen
    assert before["masks"][:, height // 2 :].any()
    assert after["masks"].any() and not after["masks"][:, height // 2 :].any()
    assert torch.equal(other_before["masks"], other_after["masks"])


def test_teacher_and_student_get_their_own_views():
    model = mutual_model()
    seen = {}
    for name in ("student", "teacher"):
        getattr(model, name).backbone.register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach()})
        )
    model(batch())
    mean, std = model.student.pixel_mean, model.student.pixel_std
    weak = torch.stack([x["image_weak"] for x in batch()])
    torch.testing.assert_close(seen["teacher"] * std + mean, weak.float())
    torch.testing.assert_close(seen["student"] * std + mean, 255 - weak.float())


def test_the_teacher_uses_all_tta_transforms():
    tta = CfgNode({"TRANSFORMS": ["identity", "hflip", "rot90"], "NMS_THRESHOLD": 0.6})
    model = mutual_model(TEACHER_TTA=tta)
    seen, labels = [], []
    model.teacher.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.observer = lambda inputs, targets: labels.append(targets)
    model(batch())
    identity, flipped, rotated = seen
    assert torch.equal(flipped, identity.flip(-1)) and torch.equal(rotated, torch.rot90(identity, 1, (-2, -1)))
    # its labels are the predictions of the plain model with the same TTA
    cfg = plain_cfg("")
    cfg.TEST.TTA = tta
    plain = build_model(cfg).eval()
    plain.load_state_dict(plain_model().state_dict())
    for target, output in zip(labels[0], plain([{"image": x["image_weak"]} for x in batch()])):
        torch.testing.assert_close(target["scores"], output["instances"].scores[: len(target["scores"])])
        assert torch.equal(target["masks"][0], torch.as_tensor(output["instances"].pred_masks[0]).squeeze(0).bool())


def test_the_teacher_also_sees_enlarged_crops():
    model = mutual_model(TEACHER_CROPS=1)
    seen, labels = [], []
    model.teacher.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    targets, size = model.targets, batch()[0]["image_weak"].shape[-1]
    model.targets = lambda *args: labels.append(args[-1]) or targets(*args)
    model(batch())
    boxes = [box for box, _ in labels[0]]
    side = -(-size * 4 // 7)  # two crops per axis, which overlap by a quarter of their side
    starts = (0, size - side)
    assert boxes == [(y, x, y + side, x + side) for y in starts for x in starts]
    assert len(seen) == 5 and all(views.shape == seen[0].shape for views in seen)
    y, x = boxes[3][:2]
    expected = torch.nn.functional.interpolate(
        seen[0][..., y:, x:], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    torch.testing.assert_close(seen[4], expected)


def test_more_crop_layers_than_possible_are_refused():
    with pytest.raises(ValueError, match=r"CORRECTION.TEACHER_CROPS must be in 0..4, got 5"):
        mutual_model(TEACHER_CROPS=5)


def test_non_finite_outputs_in_one_transform_are_detected():
    tta = CfgNode({"TRANSFORMS": ["identity", "hflip"], "NMS_THRESHOLD": 0.6})
    model = mutual_model(TEACHER_TTA=tta)
    calls = []

    def break_the_second(_, args, output):
        calls.append(output)
        if len(calls) == 2:
            output["pred_logits"][0] = float("nan")

    model.teacher.sem_seg_head.register_forward_hook(break_the_second)
    model(batch())
    assert len(calls) == 2 and model.statistics[-1] == 1


def test_views_of_different_sizes_are_refused():
    inputs = batch()
    inputs[0]["image_weak"] = inputs[0]["image_weak"][:, :32]
    with pytest.raises(ValueError, match="same geometry"):
        mutual_model()(inputs)


@pytest.mark.parametrize("labels", ["missing", "empty"])
def test_images_without_labels_are_learned_from_the_teacher_alone(labels):
    inputs = batch(labels=False)
    if labels == "empty":
        inputs = [{**x, "instances": y["instances"][:0]} for x, y in zip(inputs, batch())]
    model = mutual_model()
    losses = losses_of(model, inputs)
    assert all((loss > 0) == name.startswith("teacher/") for name, loss in losses.items())
    assert all(loss == 0 for name, loss in losses.items() if name.startswith("initial/"))
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.student.parameters())


def test_without_labels_the_loss_is_zero_and_differentiable():
    """Without labels and confident predictions, gradients are zero but not None, so that no process has to wait."""
    model = mutual_model(MIN_AREA=10**6)
    losses = losses_of(model, batch(labels=False))
    assert len(losses) == 2 * len(NAMES) * len(SUFFIXES)
    assert set(values(losses).values()) == {0.0}
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.student.parameters())
    assert model.statistics.tolist() == [2, 0, 0, 0, 0]


def test_an_image_without_labels_does_not_change_the_losses_of_others():
    model = mutual_model()
    model.branch_weights = (1.0, 0.0)
    one, other = batch()
    alone = values(losses_of(model, [one]))
    del other["instances"]
    both = values(losses_of(model, [one, other]))
    for suffix in SUFFIXES:
        for name in ("loss_ce", "loss_dice"):
            # mask losses use random points, the class loss does not
            tolerance = 1e-4 if name == "loss_ce" else 0.2
            assert both[f"initial/{name}{suffix}"] == pytest.approx(alone[f"initial/{name}{suffix}"], rel=tolerance)


def test_the_teacher_stays_in_evaluation_mode_and_out_of_the_optimizer():
    model = mutual_model()
    model.train()
    assert model.training
    assert all(m.training for m in model.student.modules())
    assert not any(m.training for m in model.teacher.modules())
    model.eval()
    assert not any(m.training for m in model.modules())
    groups = parameter_groups(model, GroupRules(base_lr=1.0, backbone_multiplier=0.1))
    found = [p for group in groups for p in group["params"]]
    assert {id(p) for p in found} == {id(p) for p in model.student.parameters()}
    assert {group["lr"] for group in groups} == {1.0, 0.1}  # the student's backbone has its own rate


def test_a_step_in_mixed_precision_updates_the_teacher_in_full_precision():
    model = mutual_model()
    before = [p.clone() for p in model.teacher.parameters()]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_of(model, batch())
    sum(losses.values()).backward()
    optimizer.step()
    model.update_teacher(0.75)
    for old, new, teacher in zip(before, model.student.parameters(), model.teacher.parameters()):
        assert teacher.dtype == torch.float32
        torch.testing.assert_close(teacher, 0.75 * old + 0.25 * new.detach(), atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(old, p) for old, p in zip(before, model.teacher.parameters()))


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_model_of_phase_2_is_loaded_into_both(tmp_path, caplog, checkpointer):
    write_phase2(tmp_path / "phase2.pth")
    torch.manual_seed(5)
    model = build_model(mutual_cfg(tmp_path))
    with caplog.at_level(logging.WARNING):
        checkpointer(model).load(str(tmp_path / "phase2.pth"))
    assert warnings_in(caplog) == []  # no missing or unexpected tensors
    for name, value in plain_model().state_dict().items():
        assert torch.equal(model.student.state_dict()[name], value), name
        assert torch.equal(model.teacher.state_dict()[name], value), name
    with torch.no_grad():
        next(model.student.parameters()).zero_()
    assert next(model.teacher.parameters()).any()  # no memory is shared


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_a_checkpoint_keeps_teacher_and_student_apart(tmp_path, caplog, checkpointer):
    model = mutual_model()
    model.teacher.load_state_dict(plain_model(seed=1).state_dict())
    checkpointer(model, str(tmp_path)).save("both")
    other = mutual_model(seed=2)
    with caplog.at_level(logging.WARNING):
        checkpointer(other).load(str(tmp_path / "both.pth"))
    assert warnings_in(caplog) == []
    wanted = model.state_dict()
    assert other.state_dict().keys() == wanted.keys()
    assert all(torch.equal(value, wanted[name]) for name, value in other.state_dict().items())
    assert any(not torch.equal(p, q) for p, q in zip(other.student.parameters(), other.teacher.parameters()))


def test_mismatched_tensors_are_skipped_and_logged(tmp_path, caplog):
    content = plain_model().state_dict()
    content["sem_seg_head.predictor.query_feat.weight"] = torch.zeros(99, 32)
    content["sem_seg_head.unknown"] = torch.zeros(2)
    torch.save({"model": content}, tmp_path / "w.pth")
    model = mutual_model(seed=3)
    before = model.teacher.sem_seg_head.predictor.query_feat.weight.clone()
    with caplog.at_level(logging.WARNING):
        SOHESCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert "query_feat.weight is left out: its shape is (99, 32) in the checkpoint and (12, 32)" in caplog.text
    assert "sem_seg_head.unknown" in caplog.text
    assert torch.equal(model.teacher.sem_seg_head.predictor.query_feat.weight, before)
    assert torch.equal(model.teacher.backbone.vit.model.pos_embed, content["backbone.vit.model.pos_embed"])
    with pytest.raises(RuntimeError, match="Missing key.*student.*query_feat"):
        model.load_state_dict(content)


@pytest.mark.parametrize(("who", "seed"), [("student", 0), ("teacher", 1)])
def test_teacher_or_student_predicts(who, seed):
    model = mutual_model(EVALUATE=who)
    model.teacher.load_state_dict(plain_model(seed=1).state_dict())
    inputs = [{"image": x["image"]} for x in batch()]
    with torch.no_grad():
        found, wanted = model.eval()(inputs), plain_model(seed).eval()(inputs)
    for mine, other in zip(found, wanted):
        assert torch.equal(mine["instances"].scores, other["instances"].scores)
        assert len(mine["forest"]) == len(other["forest"]) > 0


def test_unknown_models_to_evaluate_are_refused():
    with pytest.raises(ValueError, match="'both' is not one of student, teacher"):
        mutual_model(EVALUATE="both")

"""The three loss terms, their schedules, the teacher, and the points of the dense loss."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from helpers.tiny_pretraining import OPTIONS, photo

pytest.importorskip("lightly", reason="pip install 'sohes_d2[pretrain]'")

from sohes_d2.data.loaders import seeded
from sohes_d2.pretraining.self_distillation import SelfDistillation, common_places, features_at, moved_apart
from sohes_d2.pretraining.views import MultiCrop
from sohes_d2.pretraining.vit import build_vit

NAME = "vit_tiny_patch16_224"
BOXES = torch.tensor([[[0.0, 0.0, 40.0, 60.0], [10.0, 30.0, 50.0, 90.0]]])


def method(**settings) -> SelfDistillation:
    torch.manual_seed(0)
    defaults = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "total_iterations": 100}
    return SelfDistillation(vit=build_vit(NAME, OPTIONS), **{**defaults, **settings})


def batch(count: int = 4, seed: int = 0, local_count: int = 2) -> list[dict[str, torch.Tensor]]:
    crops = MultiCrop(
        read=lambda name: photo(int(name))[0], global_size=32, local_size=16, local_count=local_count, min_overlap=0.4
    )
    with seeded(seed):
        return [crops({"file_name": str(index)}) for index in range(count)]


def losses_of(model: SelfDistillation, samples, seed: int = 0) -> dict[str, torch.Tensor]:
    with seeded(seed):
        return model(samples)


def test_each_loss_has_a_weight_and_is_disabled_at_zero():
    samples = batch()
    one = losses_of(method(), samples)
    assert set(one) == {"loss_image", "loss_patch", "loss_dense"}
    other = losses_of(method(image_weight=2.0, patch_weight=3.0, dense_weight=0.5), samples)
    for key, factor in (("loss_image", 2.0), ("loss_patch", 3.0), ("loss_dense", 0.5)):
        torch.testing.assert_close(other[key], factor * one[key])
    alone = method(image_weight=0.0, patch_weight=0.0)
    assert set(losses_of(alone, samples)) == {"loss_dense"}
    assert alone.student.image_head is None and alone.student.patch_head is None
    with pytest.raises(ValueError, match="nothing to train"):
        method(image_weight=0, patch_weight=0, dense_weight=0)


def test_initial_prototypes_are_equally_likely():
    """Before training, the cross-entropies are near log(prototypes)."""
    losses = losses_of(method(teacher_temperature=(1.0, 1.0), student_temperature=1.0), batch())
    assert losses["loss_image"].item() == pytest.approx(np.log(16), abs=0.4)
    assert losses["loss_patch"].item() == pytest.approx(np.log(16), abs=0.4)


def test_masked_patches_are_not_visible():
    model = method(mask_views=1.0, mask_ratio=(0.25, 0.5))
    mask = model._mask(8, 4)
    counts = mask.flatten(1).sum(1)
    assert mask.shape == (8, 4, 4) and counts.min() >= 1 and counts.max() <= 8
    with torch.no_grad():
        model.student.encoder.mask_token.normal_()
    views = torch.randn(8, 3, 32, 32)
    hidden = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    flat = torch.nn.functional.pad(mask.flatten(1), (model.prefix, 0))
    changed = torch.where(hidden, torch.randn_like(views), views)
    torch.testing.assert_close(model.student(views, flat), model.student(changed, flat))
    assert not torch.allclose(model.student(views), model.student(changed))
    assert method(mask_views=0.01)._mask(3, 4).any()  # at least one view


def test_every_trained_parameter_gets_a_gradient():
    for settings in ({}, {"patch_weight": 0.0}, {"image_weight": 0.0}, {"image_weight": 0.0, "patch_weight": 0.0}):
        model = method(**settings)
        sum(losses_of(model, batch()).values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without, settings
        assert all(p.grad is None for p in model.teacher.parameters())


def test_the_teacher_is_the_ema():
    model = method(ema_momentum=(0.9, 1.0))
    before = copy.deepcopy(model.teacher.encoder.state_dict())
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.begin(0)
    model.after_step()
    after = model.teacher.encoder.state_dict()
    key = "vit.blocks.0.mlp.fc1.weight"
    torch.testing.assert_close(after[key], before[key] + 0.1)
    model.begin(99)  # the last iteration: momentum 1
    model.after_step()
    torch.testing.assert_close(model.teacher.encoder.state_dict()[key], after[key])


def test_temperature_increases_over_its_warmup():
    model = method(teacher_temperature=(0.04, 0.08), temperature_warmup=10)
    found = []
    for iteration in (0, 5, 10, 50):
        model.begin(iteration)
        found.append(model.temperature())
    assert found == pytest.approx([0.04, 0.06, 0.08, 0.08])


def test_last_layers_are_frozen_at_first():
    model = method(freeze_last_layer=2)
    for iteration, still in ((1, True), (2, False)):
        model.begin(iteration)
        model.zero_grad()
        sum(losses_of(model, batch()).values()).backward()
        model.after_backward()
        gradients = [p.grad for p in model.student.image_head.last_layer.parameters() if p.requires_grad]
        assert [g is None for g in gradients] == [still]
        assert model.student.image_head.layers[0].weight.grad is not None


def test_the_center_follows_the_teacher():
    model = method(center_momentum=0.5)
    samples = batch(local_count=0)
    views = model._normalized(torch.stack([s["global"] for s in samples], dim=1).flatten(0, 1))
    with torch.no_grad():
        said = model.teacher.image_head(model.teacher(views)[:, 0])
    losses_of(model, samples)
    torch.testing.assert_close(model.image_loss.center.flatten(), 0.5 * said.mean(0))


def test_the_dense_contrastive_loss_learns_to_distinguish_points():
    """After some steps on a few photos, features of a point in two views agree far better than at first."""
    model = method(image_weight=0.0, patch_weight=0.0, dense_temperature=0.2)
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=3e-3)
    found = []
    for step in range(40):
        loss = losses_of(model, batch(6, step, 0), step)["loss_dense"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert np.mean(found[-8:]) < np.mean(found[:8]) - 0.4


def test_the_image_loss_needs_a_class_token():
    options = {**OPTIONS, "class_token": False, "global_pool": "avg"}
    with pytest.raises(ValueError, match="LOSSES.IMAGE 0"):
        SelfDistillation(vit=build_vit(NAME, options), total_iterations=10, prototypes=16)
    model = SelfDistillation(vit=build_vit(NAME, options), total_iterations=10, prototypes=16, image_weight=0)
    assert torch.isfinite(sum(losses_of(model, batch()).values()))


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("vit_tiny_patch99", {}, "vit_tiny_patch99"),
        (NAME, {"depht": 3}, "depht"),
        ("resnet18", {}, "cannot be built|not a plain VisionTransformer"),
    ],
)
def test_invalid_vits_are_reported_with_their_key(name, options, says):
    with pytest.raises(ValueError, match=says):
        build_vit(name, options)


def coordinate_map(box: torch.Tensor, flip: bool, cells: int = 10) -> torch.Tensor:
    """(1, 2, cells, cells): each cell's feature is (y, x) of its centre in the photo."""
    y0, x0, y1, x1 = box.tolist()
    steps = (torch.arange(cells) + 0.5) / cells
    y, x = torch.meshgrid(y0 + steps * (y1 - y0), x0 + steps * (x1 - x0), indexing="ij")
    maps = torch.stack([y, x])[None]
    return maps.flip(-1) if flip else maps


def test_features_are_sampled_at_the_point_in_the_photo():
    places = torch.tensor([[[20.0, 40.0], [33.0, 51.0]]])
    for view, flip in ((0, False), (0, True), (1, False), (1, True)):
        box = BOXES[:, view]
        found = features_at(coordinate_map(box[0], flip), places, box, torch.tensor([flip]))
        torch.testing.assert_close(found, places, atol=1e-4, rtol=0)


def test_points_are_in_both_views():
    torch.manual_seed(0)
    places = common_places(BOXES, 500)
    assert places.shape == (1, 500, 2)
    low, high = places[0].amin(0), places[0].amax(0)
    assert (low >= torch.tensor([10, 30])).all() and (high <= torch.tensor([40, 60])).all()
    torch.testing.assert_close(places[0].mean(0), torch.tensor([25.0, 45.0]), atol=1.5, rtol=0)


def test_points_move_by_patches_and_stay_in_the_view():
    torch.manual_seed(0)
    box = torch.tensor([[0.0, 0.0, 100.0, 200.0]])
    places = torch.tensor([50.0, 100.0]).expand(1, 4000, 2)
    moved = moved_apart(places, box, patch_share=0.1, sigma=0.5)
    torch.testing.assert_close(moved[0].std(0), torch.tensor([5.0, 10.0]), atol=0.4, rtol=0)
    corner = moved_apart(torch.zeros(1, 100, 2), box, 0.1, 0.5)
    assert corner.min() == 0
    assert moved_apart(places, box, 0.1, 0.0) is places

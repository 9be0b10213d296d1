"""Distillation of a large ViT into a small one."""

from __future__ import annotations

import pytest
import torch
from helpers.tiny_pretraining import OPTIONS, photo
from safetensors.torch import save_file

pytest.importorskip("lightly", reason="pip install 'sohes_d2[pretrain]'")

from sohes_d2.data.loaders import seeded
from sohes_d2.errors import WeightsError
from sohes_d2.pretraining.distillation import FeatureDistillation, load_teacher, patch_map
from sohes_d2.pretraining.views import MultiCrop
from sohes_d2.pretraining.vit import build_vit

NAME = "vit_tiny_patch16_224"
LARGE = {"patch_size": 16, "img_size": 64, "embed_dim": 36, "depth": 2, "num_heads": 3}


def method(**settings) -> FeatureDistillation:
    torch.manual_seed(0)
    return FeatureDistillation(vit=build_vit(NAME, OPTIONS), teacher=load_teacher(NAME, "random:5", LARGE), **settings)


def batch(count: int = 4, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    crops = MultiCrop(read=lambda name: photo(int(name))[0], global_size=32, local_count=0)
    with seeded(seed):
        return [crops({"file_name": str(index)}) for index in range(count)]


def test_the_crop_is_resized_to_match_the_students_grid():
    model = method()
    views = torch.stack([sample["global"][0] for sample in batch()]).float()
    resized = torch.nn.functional.interpolate(views, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 255)
    expected = patch_map(model.teacher, (resized - model.teacher_mean) / model.teacher_std)
    found = model.teacher_maps(views, (4, 4))
    assert found.shape == (4, 4, 4, 36)
    torch.testing.assert_close(found, expected)


def test_another_resolution_is_resized_to_the_students_grid():
    views = torch.stack([sample["global"][0] for sample in batch()]).float()
    finer = method(resolution=2.0).teacher_maps(views, (4, 4))
    coarser = method(resolution=0.5).teacher_maps(views, (4, 4))
    assert finer.shape == coarser.shape == (4, 4, 4, 36)
    assert not torch.allclose(finer, coarser)
    with pytest.raises(ValueError, match="RESOLUTION"):
        method(resolution=0)


def test_loss_decreases_and_features_approach_the_teachers():
    model = method().train()
    assert not model.teacher.training
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    found = []
    for step in range(60):
        loss = model(batch(6, step))["loss_distillation"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[0] > 0.8  # features are random at first
    views = torch.stack([sample["global"][0] for sample in batch(6, 999)]).float()  # crops not seen before
    with torch.no_grad():
        said, meant = model.projection(model.student_maps(views)), model.teacher_maps(views, (4, 4))
    assert torch.cosine_similarity(said, meant, dim=-1).mean() > 0.6
    assert sum(found[-5:]) / 5 < 0.4
    assert all(torch.equal(value, before[key]) for key, value in model.teacher.state_dict().items())


def test_checkpoints_exclude_the_teacher():
    model = method()
    state = model.state_dict()
    assert state and not [key for key in state if "teacher" in key.split(".")]
    assert not method().load_state_dict(state, strict=False).missing_keys


def test_teachers_come_from_files_of_their_architecture(tmp_path):
    teacher = build_vit(NAME, LARGE)
    path = tmp_path / "teacher.safetensors"
    save_file(teacher.state_dict(), path)
    loaded = load_teacher(NAME, str(path), LARGE)
    assert torch.equal(loaded.blocks[1].mlp.fc2.weight, teacher.blocks[1].mlp.fc2.weight)
    with pytest.raises(WeightsError, match="PRETRAINING.TEACHER.NAME"):
        load_teacher(NAME, str(path), {**LARGE, "depth": 3})
    with pytest.raises(ValueError, match="PRETRAINING.TEACHER.NAME 'vit_none'"):
        load_teacher("vit_none", str(path), {})

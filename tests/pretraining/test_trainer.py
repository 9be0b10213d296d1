"""Whole pretraining runs: resuming, files, precision, several processes."""

from __future__ import annotations

import json

import pytest
import torch
from helpers.tiny_pretraining import OPTIONS, photo, tiny_cfg, write_photos
from safetensors import safe_open

pytest.importorskip("lightly", reason="pip install 'sohes_d2[pretrain]'")

from helpers import two_pretraining_processes

from sohes_d2.engine.launch import launch
from sohes_d2.errors import ConfigError
from sohes_d2.exploration.features import load_vit_file
from sohes_d2.modeling.backbone.vit import ViT
from sohes_d2.pretraining.trainer import BEST, CARD, LAST, PretrainingTrainer
from sohes_d2.pretraining.vit import build_vit, export_vit


def train(cfg, resume: bool = False, seed: int = 0) -> PretrainingTrainer:
    torch.manual_seed(seed)
    trainer = PretrainingTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(folder, the trainer of six iterations, its model card)."""
    folder = tmp_path_factory.mktemp("straight")
    write_photos(folder)
    (folder / "photos" / "zz_broken.png").write_bytes(b"no image")
    trainer = train(tiny_cfg(folder, folder / "run"))
    return folder, trainer, json.loads((folder / "run" / CARD).read_text())


def test_resumed_equals_uninterrupted(straight):
    folder, trainer, card = straight
    output = folder / "resumed"
    cfg = tiny_cfg(folder, output)

    class StoppedError(Exception):
        pass

    stopped = PretrainingTrainer(cfg)
    stopped.resume_or_load(resume=False)
    torch.manual_seed(0)
    first = PretrainingTrainer(cfg)
    first.resume_or_load(resume=True)
    run_step = first.run_step

    def until_four():
        if first.iter == 4:
            raise StoppedError
        run_step()

    first.run_step = until_four
    with pytest.raises(StoppedError):
        first.train()
    resumed = train(cfg, resume=True, seed=7)
    assert resumed.start_iter == 3
    expected, found = trainer.checkpointer.model.state_dict(), resumed.checkpointer.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    again = json.loads((output / CARD).read_text())
    assert [h["near_auc"] for h in again["history"]] == [h["near_auc"] for h in card["history"]]
    assert again["best"]["iteration"] == card["best"]["iteration"]
    assert (output / BEST).read_bytes() == (folder / "run" / BEST).read_bytes()


def test_the_card_describes_the_training(straight):
    folder, trainer, card = straight
    assert card["architecture"]["name"] == "vit_tiny_patch16_224" and card["architecture"]["options"] == OPTIONS
    assert card["data"] == {"images": ["photos"], "photos": 7, "broken_photos": 1, "labels": "none"}
    assert card["iterations"] == 6 and [h["iteration"] for h in card["history"]] == [3, 6]
    assert card["best"]["near_auc"] == max(h["near_auc"] for h in card["history"])
    assert 0 < card["history"][0]["hours"] <= card["hours"] < 0.1
    assert card["parameters"] == sum(p.numel() for p in trainer.checkpointer.model.vit.parameters())
    assert str(folder) not in json.dumps(card["data"])
    lines = [json.loads(line) for line in (folder / "run" / "metrics.json").read_text().splitlines()]
    assert {"loss_image", "loss_patch", "loss_dense", "dense/near_auc", "lr", "skipped_images"} <= lines[-1].keys()
    assert lines[-1]["skipped_images"] == 1
    assert list((folder / "run").glob("events.out.tfevents.*"))


def test_the_exported_file_is_half_precision_with_timms_names_and_works_in_all_phases(straight):
    folder, trainer, card = straight
    path = str(folder / "run" / LAST)
    vit = trainer.checkpointer.model.vit
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(vit.state_dict())
        stored = file.get_tensor("blocks.1.attn.qkv.weight")
    assert stored.dtype == torch.float16
    torch.testing.assert_close(stored, vit.blocks[1].attn.qkv.weight.detach().half())
    extractor = load_vit_file(path, token_budget=48)
    image = photo(0)[0]
    assert extractor.facet == "token" and extractor.extract([image]).shape == (1, 6, 8, 24)
    x = torch.from_numpy(image.transpose(2, 0, 1).copy())[None].float().div(127.5).sub(1)  # mean and std 0.5
    with torch.no_grad():
        tokens = vit.eval().forward_features(x)[0, 1:]
    torch.testing.assert_close(torch.from_numpy(extractor.extract([image])).reshape(48, 24), tokens, atol=2e-2, rtol=0)
    backbone = ViT("vit_tiny_patch16_224", options=OPTIONS)
    assert not backbone.load_pretrained(path).missing


def test_dtypes_of_the_exported_file(tmp_path):
    vit = build_vit("vit_tiny_patch16_224", OPTIONS)
    with pytest.raises(ValueError, match="OUTPUT_DTYPE 'float8' is not one of float32"):
        export_vit(vit, str(tmp_path / "a.safetensors"), {}, "float8")
    with torch.no_grad():
        vit.blocks[0].mlp.fc1.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="blocks.0.mlp.fc1.weight is not finite in float16; .* float32"):
        export_vit(vit, str(tmp_path / "a.safetensors"), {}, "float16")
    assert not list(tmp_path.iterdir())
    export_vit(vit, str(tmp_path / "new" / "a.safetensors"), {"name": "x"}, "float32")
    with safe_open(str(tmp_path / "new" / "a.safetensors"), framework="pt") as file:
        assert file.get_tensor("blocks.0.mlp.fc1.weight")[0, 0] == 1e6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains(straight, tmp_path, dtype):
    folder, trainer, _ = straight
    changes = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": dtype, "PRETRAINING__CHECK__JSON": "''"}
    mixed = train(tiny_cfg(folder, tmp_path, 2, **changes))
    loss = {key: value[0] for key, value in mixed.storage.latest().items() if key.startswith("loss_")}
    full = train(tiny_cfg(folder, tmp_path / "full", 2, PRETRAINING__CHECK__JSON="''"))
    for key, value in loss.items():
        assert value == pytest.approx(full.storage.latest()[key][0], rel=0.05)
    assert (tmp_path / BEST).is_file()  # without a check, the last is the best


def test_two_processes_end_with_one_model(straight, tmp_path):
    folder, _, _ = straight
    launch(two_pretraining_processes.work, 2, args=(str(folder), str(tmp_path)), use_gpus=False)
    card = json.loads((tmp_path / CARD).read_text())
    assert card["processes"] == 2 and card["iterations"] == 3
    first, second = (json.loads((tmp_path / f"sums{rank}.json").read_text()) for rank in range(2))
    assert first == second  # weights and centers
    assert first["moved"] > 0


def test_distillation_trains_and_resumes(straight, tmp_path):
    folder, _, _ = straight
    changes = {
        "PRETRAINING__METHOD": "distillation",
        "PRETRAINING__TEACHER__NAME": "vit_tiny_patch16_224",
        "PRETRAINING__TEACHER__WEIGHTS": "random:5",
        "PRETRAINING__TEACHER__OPTIONS__depth": 1,
        "PRETRAINING__TEACHER__OPTIONS__embed_dim": 24,
    }
    straight_run = train(tiny_cfg(folder, tmp_path / "a", 4, **changes))
    train(tiny_cfg(folder, tmp_path / "b", 4, **changes))
    (tmp_path / "b" / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train(tiny_cfg(folder, tmp_path / "b", 4, **changes), resume=True)
    assert resumed.start_iter == 3
    expected, found = straight_run.checkpointer.model.state_dict(), resumed.checkpointer.model.state_dict()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_training_starts_from_given_weights(straight, tmp_path):
    folder, trainer, _ = straight
    path = str(folder / "run" / LAST)
    fresh = PretrainingTrainer(tiny_cfg(folder, tmp_path, MODEL__VIT__WEIGHTS=path))
    fresh.resume_or_load(resume=True)
    model = fresh.checkpointer.model
    for vit in (model.vit, model.student_vit):
        given = trainer.checkpointer.model.vit.blocks[0].attn.qkv.weight
        torch.testing.assert_close(vit.blocks[0].attn.qkv.weight, given, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"PRETRAINING__METHOD": "magic"}, "self_distillation, distillation"),
        ({"PRETRAINING__IMAGES": []}, "PRETRAINING.IMAGES is empty"),
        ({"PRETRAINING__VIEWS__GLOBAL_SIZE": 36}, "GLOBAL_SIZE 36 is not a multiple of the patch size 8"),
        ({"PRETRAINING__VIEWS__GLOBAL_SCALE": [0.5, 0.1]}, "GLOBAL_SCALE"),
        ({"MODEL__VIT__OPTIONS__depht": 3}, "MODEL.VIT.OPTIONS"),
    ],
)
def test_invalid_settings_are_reported_before_training(straight, tmp_path, changes, says):
    with pytest.raises(ConfigError, match=says):
        PretrainingTrainer(tiny_cfg(straight[0], tmp_path, **changes))

"""The teacher is the same in two processes."""

import json

import torch
from helpers.mutual_training import plain_cfg
from helpers.two_teachers import work

from sohes_d2.engine.launch import launch

from detectron2.modeling import build_model


def test_two_processes_stay_in_step(tmp_path):
    cfg = plain_cfg("")
    cfg.MODEL.VIT_ADAPTER.NORM = "BN"
    torch.manual_seed(0)
    initial = build_model(cfg).state_dict()
    torch.save({"model": initial}, tmp_path / "phase2.pth")
    launch(work, 2, args=(str(tmp_path), str(tmp_path / "phase2.pth")), use_gpus=False)

    teachers, students = ([torch.load(tmp_path / f"{name}{k}.pth") for k in (0, 1)] for name in ("teacher", "student"))
    statistics = [name for name in initial if name.endswith("running_mean")]
    for name, value in teachers[0].items():
        assert torch.equal(value, teachers[1][name]), name
        if name in statistics:
            assert torch.equal(value, students[0][name]), name
            assert not torch.equal(value, students[1][name]), name
    assert statistics
    assert any(not torch.equal(value, teachers[0][name]) for name, value in initial.items())
    last = json.loads((tmp_path / "run" / "metrics.json").read_text().splitlines()[-1])
    assert 0 < last["correction/labels_per_image"] <= 2.5  # the mean over both processes

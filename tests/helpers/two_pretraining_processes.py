"""Function run by two processes in the test of distributed pretraining; a module, since it is imported by name."""

import json
from pathlib import Path

import torch

import sohes_d2  # noqa: F401  (before Detectron2)
from helpers.tiny_pretraining import tiny_cfg
from sohes_d2.pretraining.trainer import PretrainingTrainer

from detectron2.utils import comm


def work(folder, output):
    """Three iterations, from initial weights that differ between the processes; writes sums of the model."""
    torch.set_num_threads(1)
    torch.manual_seed(comm.get_rank())
    trainer = PretrainingTrainer(tiny_cfg(Path(folder), Path(output), 3))
    trainer.resume_or_load(resume=False)
    model = trainer.checkpointer.model
    before = model.vit.blocks[0].attn.qkv.weight.clone()
    trainer.train()
    sums = {key: value.double().sum().item() for key, value in model.state_dict().items()}
    sums["moved"] = float((model.vit.blocks[0].attn.qkv.weight - before).abs().max())
    (Path(output) / f"sums{comm.get_rank()}.json").write_text(json.dumps(sums))

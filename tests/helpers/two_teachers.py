"""Function run by two processes in a test; a module, since it is imported by name."""

from pathlib import Path

import torch

import sohes_d2  # noqa: F401  (before Detectron2)
from helpers.mutual_training import mutual_cfg
from helpers.tiny_training import write_scenes
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.engine.trainer import SOHESTrainer

from detectron2.utils import comm


def work(output, weights):
    """Train four iterations with norms whose running statistics differ between processes; the final models must not.

    In one process, the images have no labels and the teacher predicts none.
    """
    torch.set_num_threads(1)
    rank = comm.get_rank()
    folder = Path(output) / f"scenes{rank}"
    write_scenes(folder)
    register_coco_entities("two_scenes", str(folder / "labels.json"), str(folder / "images"))
    torch.manual_seed(rank)  # all processes must use the checkpoint's weights
    cfg = mutual_cfg(Path(output) / "run", weights, train=("two_scenes",), MAX_ITER=4)
    cfg.MODEL.VIT_ADAPTER.NORM = "BN"
    trainer = SOHESTrainer(cfg)
    trainer.resume_or_load(False)
    model = trainer.checkpointer.model
    if rank == 1:
        model.targets.min_area = 10**6
        model._initial_target = lambda sample, size: None
    trainer.train()
    for part in ("teacher", "student"):
        torch.save(getattr(model, part).state_dict(), Path(output) / f"{part}{rank}.pth")

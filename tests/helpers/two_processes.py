"""Functions run by two processes in the test of `launch`; a module, since they are imported by name."""

import atexit
import os
import signal
import sys
from pathlib import Path

import torch

import sohes_d2  # noqa: F401  (before Detectron2)
from helpers.tiny_training import sohes_cfg, tiny_cfg, write_scenes
from sohes_d2.data.registration import register_coco_entities
from sohes_d2.data.synthetic.scene import generate_scene
from sohes_d2.engine.trainer import SOHESTrainer
from sohes_d2.modeling import point_sampling
from sohes_d2.structures.instance_fields import AncestorMatrix
from sohes_d2.structures.masks import decode_masks

from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm

SIZE = (64, 64)
LABELS = 3


def fixed_points(num_sets, num_points, device):
    """The same points for all masks of all batches."""
    points = torch.rand(1, num_points, 2, generator=torch.Generator().manual_seed(0))
    return points.to(device).expand(num_sets, -1, -1)


def samples():
    """Four images with equally many labels, so that the mean class loss of the processes is that over all images."""
    found = []
    for index in range(20):
        image, forest = generate_scene(1, index, SIZE)
        if len(forest) < LABELS:
            continue
        masks = torch.as_tensor(decode_masks(forest.masks[:LABELS])).bool()
        instances = Instances(SIZE)
        instances.gt_classes = torch.zeros(LABELS, dtype=torch.int64)
        instances.gt_masks = BitMasks(masks)
        instances.gt_boxes = Boxes(torch.zeros(LABELS, 4))
        instances.gt_ancestors = AncestorMatrix(torch.as_tensor(forest.ancestors()[:LABELS, :LABELS]))
        found.append({"image": torch.as_tensor(image.transpose(2, 0, 1).copy()), "instances": instances})
    return found[:4]


def gradients(output):
    """Gradients of one step on this process's share of `samples`, averaged over processes as in training."""
    point_sampling.random_points = fixed_points
    torch.manual_seed(comm.get_rank())  # all processes must use the initial weights of the first
    trainer = SOHESTrainer(sohes_cfg(output))
    batch = samples()[comm.get_rank() :: comm.get_world_size()]
    sum(trainer.model(batch).values()).backward()
    return {name: p.grad for name, p in trainer.checkpointer.model.named_parameters()}


def train(output):
    """Train six iterations with an evaluation, then two more after a resume."""
    folder = Path(output) / f"scenes{comm.get_rank()}"
    write_scenes(folder)
    register_coco_entities("two_scenes", str(folder / "labels.json"), str(folder / "images"))
    for iterations in (6, 8):
        torch.manual_seed(0)
        cfg = tiny_cfg(Path(output) / "run", train=("two_scenes",), test=("two_scenes",), MAX_ITER=iterations)
        cfg.SOLVER.IMS_PER_BATCH = 4
        trainer = SOHESTrainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
    total = sum(p.double().sum().item() for p in trainer.model.parameters())
    totals = comm.all_gather(total)
    assert totals[0] == totals[-1], "the processes' models differ"


def work(output, exit_code):
    """Run `gradients` and `train` in one of several processes; the first saves its gradients. Exits with a code."""
    torch.set_num_threads(1)
    found = gradients(os.path.join(output, "gradients"))
    if comm.is_main_process():
        torch.save(found, os.path.join(output, f"gradients{comm.get_world_size()}.pth"))
    train(output)
    comm.synchronize()
    sys.exit(exit_code)


class AbortsWhenPythonEnds:
    """Aborts in the interpreter's finalization, as a late thread of gloo sometimes does."""

    def __del__(self, abort=os.abort):  # globals may be deleted by then
        abort()


def leave(output, exit_code):
    """Exit with a code, if any; exit handlers must run although the finalization would abort."""
    global aborts
    aborts = AbortsWhenPythonEnds()
    name = f"left{comm.get_rank()}"
    file = open(os.path.join(output, name), "w")  # noqa: SIM115  (closed at the exit)
    file.write(name)
    atexit.register(file.close)
    print(name, end="")
    if exit_code is not None:
        sys.exit(exit_code)


def die():
    """Kill the second process while the first waits for it."""
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def fail():
    """Raise an error in the second process while the first waits for it."""
    if comm.get_rank() == 1:
        raise FloatingPointError("no number")
    comm.synchronize()

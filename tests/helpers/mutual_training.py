"""A tiny teacher and student, and the model that they start from; imported by tests and by their processes."""

import copy
import functools

import torch

from helpers.tiny_training import sohes_cfg
from helpers.two_processes import samples

from detectron2.modeling import build_model

_samples = functools.cache(samples)


def plain_cfg(output, **solver):
    """Config of phase 2."""
    return sohes_cfg(output, **solver)


def mutual_cfg(output, weights="", **solver):
    """Config of phase 3; labels are the five best masks of the teacher, whatever their scores."""
    cfg = sohes_cfg(output, **solver)
    cfg.MODEL.META_ARCHITECTURE = "SOHESMutualLearning"
    cfg.MODEL.WEIGHTS = str(weights)
    cfg.CORRECTION.EMA_MOMENTUM = 0.9
    cfg.CORRECTION.MIN_AREA = 1
    cfg.CORRECTION.THRESHOLD.NAME = "top_k"
    cfg.CORRECTION.THRESHOLD.TOP_K = 5
    return cfg


@functools.cache
def _plain_model(seed):
    torch.manual_seed(seed)
    return build_model(plain_cfg(""))


def _mutual_model(correction):
    cfg = mutual_cfg("")
    cfg.CORRECTION.update(correction)
    return build_model(cfg)


_usual_model = functools.cache(lambda: _mutual_model({}))


def plain_model(seed=0):
    """The model of phase 2, with random weights of a seed."""
    return copy.deepcopy(_plain_model(seed))


def mutual_model(seed=0, **correction):
    """The model of phase 3; both parts have the weights of `plain_model`. ``correction`` are keys of CORRECTION."""
    model = _mutual_model(correction) if correction else copy.deepcopy(_usual_model())
    model.load_state_dict(plain_model(seed).state_dict())
    return model.train()


def write_phase2(path):
    """Write a checkpoint of phase 2; returns its path."""
    torch.save({"model": plain_model().state_dict()}, path)
    return path


def batch(labels=True):
    """Two images; the student's view is the negative of the teacher's."""
    found = []
    for sample in _samples()[:2]:
        weak = sample["image"]
        found.append({"image": 255 - weak, "image_weak": weak})
        if labels:
            found[-1]["instances"] = sample["instances"]
    return found

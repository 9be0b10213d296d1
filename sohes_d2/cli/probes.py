"""Smoke tests of all phases with tiny models; they take seconds on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances

from .. import correction  # noqa: F401  (registers the models)
from ..config.load import load_config
from ..correction.guard import TeacherStatistics
from ..data.synthetic.scene import generate_scene
from ..errors import SOHESError
from ..exploration.features import ColorTextureExtractor
from ..exploration.labeler import PseudoLabeler
from ..structures.instance_fields import AncestorMatrix
from ..structures.masks import decode_masks

_SIZE = (64, 64)


def probe_labeling() -> str:
    """Run phase 1 on a synthetic picture, without weights; returns a message.

    Raises:
        SOHESError: no mask was found.
    """
    image, _ = generate_scene(0, 0, (96, 96))
    forest = PseudoLabeler(ColorTextureExtractor()).generate(image)
    forest.check()
    if not len(forest):
        raise SOHESError("no mask was found in a picture that has some")
    return f"{len(forest)} masks found in a test picture"


def probe_training(device: str = "cpu") -> str:
    """Run a training step and a prediction of a tiny model of phase 2; returns a message.

    Raises:
        SOHESError: a loss or gradient is not finite.
    """
    _train_and_predict(tiny_config(device))
    return f"a training step and a prediction of a tiny model ran on {device}"


def probe_correction(device: str = "cpu") -> str:
    """Run a training step of phase 3 with a tiny teacher, its EMA update and a prediction; returns a message.

    Raises:
        SOHESError: a loss or gradient is not finite, or the teacher gave no pseudo-label.
    """
    cfg = tiny_config(device)
    cfg.MODEL.META_ARCHITECTURE = "SOHESMutualLearning"
    cfg.CORRECTION.MIN_AREA = 1
    cfg.CORRECTION.THRESHOLD.NAME = "top_k"  # random weights give low scores
    model = _train_and_predict(cfg)
    labels = TeacherStatistics.from_sums(model.statistics).labels
    if not labels:
        raise SOHESError("the teacher gave no pseudo-label")
    model.update_teacher(0.9)
    return f"a training step with {labels:.0f} pseudo-labels of a tiny teacher, and its prediction, ran on {device}"


def _train_and_predict(cfg: CfgNode) -> Any:
    torch.manual_seed(0)
    model = build_model(cfg)
    image, forest = generate_scene(0, 1, _SIZE)
    pixels = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    instances = Instances(_SIZE)
    instances.gt_classes = torch.zeros(len(forest), dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.from_numpy(decode_masks(forest.masks)))
    instances.gt_ancestors = AncestorMatrix(torch.from_numpy(forest.ancestors()))
    loss = sum(model.train()([{"image": pixels, "image_weak": pixels, "instances": instances}]).values())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not gradients or not all(bool(torch.isfinite(value).all()) for value in [loss, *gradients]):
        raise SOHESError(f"a training step gave the loss {loss.item():g} and gradients that are not finite")
    with torch.no_grad():
        predicted = model.eval()([{"image": pixels, "height": _SIZE[0], "width": _SIZE[1]}])[0]["forest"]
    predicted.check()
    return model


def tiny_config(device: str = "cpu") -> CfgNode:
    """Config of the full architecture at a tiny size, with random weights."""
    cfg = load_config("")
    cfg.MODEL.DEVICE = device
    cfg.MODEL.META_ARCHITECTURE = "SOHES"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.NAME = "build_vit_adapter_backbone"
    cfg.MODEL.VIT.NAME, cfg.MODEL.VIT.WEIGHTS = "vit_tiny_patch16_224", "random"
    cfg.MODEL.VIT.OPTIONS.update({"depth": 2, "embed_dim": 32, "num_heads": 2})
    cfg.MODEL.VIT_ADAPTER.update({"NUM_INTERACTIONS": 2, "CONV_INPLANE": 8, "NUM_HEADS": 2, "NORM": "GN"})
    cfg.MODEL.SEM_SEG_HEAD.update(
        {
            "NAME": "EntityHead",
            "IN_FEATURES": ["res2", "res3", "res4", "res5"],
            "NUM_CLASSES": 1,
            "CONVS_DIM": 32,
            "MASK_DIM": 32,
            "TRANSFORMER_ENC_LAYERS": 1,
            "ENC_DIM_FEEDFORWARD": 32,
        }
    )
    cfg.MODEL.MASK_FORMER.update(
        {
            "HIDDEN_DIM": 32,
            "NHEADS": 2,
            "DIM_FEEDFORWARD": 32,
            "DEC_LAYERS": 3,
            "NUM_OBJECT_QUERIES": 12,
            "TRAIN_NUM_POINTS": 64,
        }
    )
    cfg.MODEL.ANCESTOR_HEAD.DIM = 8
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.IMAGE_SIZE = _SIZE[0]
    return cfg

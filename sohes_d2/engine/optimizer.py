"""Optimizer with parameter groups, and the schedule of its learning rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler
from torch import nn

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler

from ..errors import ConfigError

OPTIMIZERS = ("ADAMW", "SGD")
CLIP_TYPES = ("full_model", "norm", "value")
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
# Names of embeddings that are plain parameters in timm, Swin and Mask2Former.
_EMBEDDINGS = {
    "absolute_pos_embed",
    "cls_token",
    "dist_token",
    "level_embed",
    "pos_embed",
    "reg_token",
    "rel_pos_h",
    "rel_pos_w",
    "relative_position_bias_table",
}


@dataclass(frozen=True)
class GroupRules:
    """Learning rate and weight decay of a parameter by its name and module, as set in ``SOLVER``.

    Attributes:
        base_lr: learning rate of all other parameters.
        backbone_multiplier: factor of the learning rate for pretrained parameters: the backbone without its adapter.
        layer_decay: factor of the learning rate from one block of the backbone to the block below it.
        bias_lr_factor: factor of the learning rate for biases outside of norms.
        weight_decay: of all other parameters.
        weight_decay_norm: of norms, and of vectors that scale as norms do (LayerScale).
        weight_decay_embed: of embeddings.
        weight_decay_bias: of biases outside of norms; None: as `weight_decay`.
    """

    base_lr: float
    backbone_multiplier: float = 1.0
    layer_decay: float = 1.0
    bias_lr_factor: float = 1.0
    weight_decay: float = 0.0
    weight_decay_norm: float = 0.0
    weight_decay_embed: float = 0.0
    weight_decay_bias: float | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GroupRules:
        """The rules of ``cfg.SOLVER``."""
        solver = cfg.SOLVER
        return cls(
            base_lr=solver.BASE_LR,
            backbone_multiplier=solver.BACKBONE_MULTIPLIER,
            layer_decay=solver.LAYER_DECAY,
            bias_lr_factor=solver.BIAS_LR_FACTOR,
            weight_decay=solver.WEIGHT_DECAY,
            weight_decay_norm=solver.WEIGHT_DECAY_NORM,
            weight_decay_embed=solver.WEIGHT_DECAY_EMBED,
            weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        )

    def decay_of(self, module: nn.Module, name: str, parameter: nn.Parameter) -> float:
        """Weight decay of ``module``'s own parameter ``name``."""
        if isinstance(module, nn.Embedding) or name in _EMBEDDINGS:
            return self.weight_decay_embed
        # Detectron2 and timm have norms that share no base class with torch's.
        if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
            return self.weight_decay_norm
        if name.endswith("bias"):
            return self.weight_decay if self.weight_decay_bias is None else self.weight_decay_bias
        return self.weight_decay_norm if parameter.ndim <= 1 else self.weight_decay

    def lr_of(self, module: nn.Module, name: str, backbone: nn.Module | None, name_in_backbone: str) -> float:
        """Learning rate of ``module``'s own parameter ``name``, which belongs to ``backbone`` if that is not None."""
        lr = self.base_lr
        if backbone is not None:
            lr *= self._backbone_factor(backbone, name_in_backbone)
        is_norm = isinstance(module, _NORMS)
        return lr * self.bias_lr_factor if name.endswith("bias") and not is_norm else lr

    def _backbone_factor(self, backbone: Any, name: str) -> float:
        if not hasattr(backbone, "layer_of"):
            return self.backbone_multiplier
        above = backbone.num_layers - 1 - backbone.layer_of(name)  # 0: the adapter, 1: the topmost block
        return 1.0 if above == 0 else self.backbone_multiplier * self.layer_decay ** (above - 1)


def parameter_groups(model: nn.Module, rules: GroupRules) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, one for each pair of learning rate and weight decay.

    Any module named "backbone" counts as a backbone. If it has ``layer_of(parameter name)`` and ``num_layers`` (0:
    embeddings, then the blocks in order, last the parts that were not pretrained), its layers get different learning
    rates.

    Returns:
        ``[{"params": [...], "lr": ..., "weight_decay": ...}]``; a shared parameter appears once, a frozen one not at
        all. The order follows the model, so that a saved optimizer matches its parameters.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        backbone, inside = _backbone(model, path.split("."))
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            lr = rules.lr_of(module, name, backbone, ".".join([*inside, name]))
            groups.setdefault((lr, rules.decay_of(module, name, parameter)), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def _backbone(model: nn.Module, path: list[str]) -> tuple[nn.Module | None, list[str]]:
    """The outermost module "backbone" on the path to a module, or None, and the rest of the path."""
    if "backbone" not in path:
        return None, path
    depth = path.index("backbone") + 1
    return model.get_submodule(".".join(path[:depth])), path[depth:]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`, with the clipping of ``SOLVER.CLIP_GRADIENTS``.

    Raises:
        ConfigError: another ``SOLVER.OPTIMIZER`` or ``CLIP_TYPE``, or a model without trainable parameters.
    """
    groups = parameter_groups(model, GroupRules.from_config(cfg))
    if not groups:
        raise ConfigError("the model has no trainable parameters; nothing can be trained")
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name not in OPTIMIZERS:
        raise ConfigError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r} is not one of {', '.join(OPTIMIZERS)}")
    if name == "ADAMW":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=cfg.SOLVER.BASE_LR)
    else:
        optimizer = torch.optim.SGD(
            groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    clipping = cfg.SOLVER.CLIP_GRADIENTS
    if clipping.ENABLED:
        # A gradient scaler has already unscaled the gradients when this hook runs.
        optimizer.register_step_pre_hook(_clipper(clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.NORM_TYPE))
    return optimizer


def _clipper(kind: str, limit: float, norm_type: float) -> Callable[[torch.optim.Optimizer, Any, Any], None]:
    if kind not in CLIP_TYPES:
        raise ConfigError(f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE {kind!r} is not one of {', '.join(CLIP_TYPES)}")

    def clip(optimizer: Any, *_: Any) -> None:
        params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if kind == "value":
            nn.utils.clip_grad_value_(params, limit)
        elif kind == "norm":
            for parameter in params:
                nn.utils.clip_grad_norm_(parameter, limit, norm_type)
        else:
            norm = float(nn.utils.clip_grad_norm_(params, limit, norm_type))
            if not math.isfinite(norm):
                # Clipping by it would write NaN to the weights and the next checkpoint.
                raise FloatingPointError(f"the norm of the gradients is {norm}, so the step was not taken")
            optimizer.grad_norm = norm

    return clip


POLY = "WarmupPolyLR"
SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", POLY)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: a factor on every group's learning rate, once per iteration.

    Steps and cosine are Detectron2's. WarmupPolyLR is ``(1 - iteration / MAX_ITER) ** POLY_LR_POWER``, with the
    same warm-up as the others. A factor depends only on the iteration, so a resumed training continues the schedule.

    Raises:
        ConfigError: another name.
    """
    solver = cfg.SOLVER
    if solver.LR_SCHEDULER_NAME not in SCHEDULERS:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME {solver.LR_SCHEDULER_NAME!r} is not one of {', '.join(SCHEDULERS)}"
        )
    if solver.LR_SCHEDULER_NAME != POLY:
        return build_detectron2_scheduler(cfg, optimizer)
    factor = WarmupParamScheduler(
        PolynomialDecayParamScheduler(1.0, solver.POLY_LR_POWER),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
    )
    return LRMultiplier(optimizer, multiplier=factor, max_iter=solver.MAX_ITER)

"""Learning rate schedules."""

from __future__ import annotations

import torch
from fvcore.common.param_scheduler import PolynomialDecayParamScheduler

from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler

from ..errors import ConfigError

POLY = "WarmupPolyLR"
SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", POLY)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    """The schedule ``SOLVER.LR_SCHEDULER_NAME``: a factor on every group's learning rate, once per iteration.

    Steps and cosine are Detectron2's. WarmupPolyLR is ``(1 - iteration / MAX_ITER) ** POLY_LR_POWER``, reached by the
    same warm-up as the others. A factor depends on the iteration alone, so that a resumed training goes on with it.

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

"""Score thresholds for pseudo-labels, constant or depending on mask area."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from fvcore.common.registry import Registry
from torch import Tensor

from detectron2.config import configurable

THRESHOLD_REGISTRY = Registry("THRESHOLD")
THRESHOLD_REGISTRY.__doc__ = """
Thresholds, looked up by ``CORRECTION.THRESHOLD.NAME``. Each is a `Threshold`, called with ``(cfg)``.
"""


class Threshold(ABC):
    """Selects masks of one image.

    Attributes:
        least_score: masks with a lower score are never chosen, so they need not be resized to full size.
    """

    least_score: float = 0.0

    @abstractmethod
    def __call__(self, areas: Tensor, scores: Tensor) -> Tensor:
        """Select masks.

        Args:
            areas: (N,) shares of the image, in [0, 1].
            scores: (N,) in [0, 1].

        Returns:
            (N,) bool, True for masks that become labels.
        """


def build_threshold(cfg: Any) -> Threshold:
    """The threshold that ``CORRECTION.THRESHOLD.NAME`` names.

    Raises:
        ValueError: an unknown name.
    """
    name = cfg.CORRECTION.THRESHOLD.NAME
    if name not in THRESHOLD_REGISTRY:
        known = ", ".join(known for known, _ in THRESHOLD_REGISTRY)
        raise ValueError(f"CORRECTION.THRESHOLD.NAME must be one of {known}, got {name!r}")
    return THRESHOLD_REGISTRY.get(name)(cfg)


@THRESHOLD_REGISTRY.register()
class dynamic(Threshold):  # noqa: N801 (the class is named as the config names it)
    """Threshold that rises with the area, since small entities get low scores (SOHES, section 3.3).

    For a mask of area a, as a share of the image, it is

        tau(a) = tau_small + (tau_large - tau_small) * clip(log(a / area_small) / log(area_large / area_small), 0, 1).

    A lower threshold for small entities is from the paper [P]; its formula was not available, so this one is ours [D].
    It is linear in the logarithm because areas of entities span orders of magnitude.
    """

    @configurable
    def __init__(
        self,
        *,
        tau_small: float = 0.3,
        tau_large: float = 0.7,
        area_small: float = 0.001,
        area_large: float = 0.1,
    ):
        """
        Args:
            tau_small: threshold for areas up to ``area_small``, in [0, 1].
            tau_large: threshold for areas from ``area_large``, in [0, 1].
            area_small, area_large: shares of the image, 0 < area_small < area_large.

        Raises:
            ValueError: a number out of its range.
        """
        if not 0 < area_small < area_large:
            raise ValueError(
                "CORRECTION.THRESHOLD needs 0 < AREA_RATIO_SMALL < AREA_RATIO_LARGE (shares of the image), "
                f"got {area_small} and {area_large}"
            )
        _check_score("TAU_SMALL", tau_small)
        _check_score("TAU_LARGE", tau_large)
        self.tau_small = tau_small
        self.tau_large = tau_large
        self.area_small = area_small
        self.area_large = area_large
        self.least_score = min(tau_small, tau_large)

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        node = cfg.CORRECTION.THRESHOLD
        return {
            "tau_small": node.TAU_SMALL,
            "tau_large": node.TAU_LARGE,
            "area_small": node.AREA_RATIO_SMALL,
            "area_large": node.AREA_RATIO_LARGE,
        }

    def tau(self, areas: Tensor) -> Tensor:
        """(N,) thresholds for areas (N,), shares of the image."""
        position = (areas / self.area_small).log() / math.log(self.area_large / self.area_small)
        return self.tau_small + (self.tau_large - self.tau_small) * position.clamp(0, 1)

    def __call__(self, areas: Tensor, scores: Tensor) -> Tensor:
        return scores >= self.tau(areas)


@THRESHOLD_REGISTRY.register()
class fixed(Threshold):  # noqa: N801
    """The same threshold for all masks, as in HASSOD; the baseline for `dynamic`."""

    @configurable
    def __init__(self, *, tau: float = 0.5):
        """
        Args:
            tau: in [0, 1].

        Raises:
            ValueError: ``tau`` is not in [0, 1].
        """
        _check_score("FIXED", tau)
        self.least_score = tau

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {"tau": cfg.CORRECTION.THRESHOLD.FIXED}

    def __call__(self, areas: Tensor, scores: Tensor) -> Tensor:
        return scores >= self.least_score


@THRESHOLD_REGISTRY.register()
class top_k(Threshold):  # noqa: N801
    """The k best masks of each image, whatever their scores; independent of a model's calibration."""

    @configurable
    def __init__(self, *, k: int = 50):
        """
        Args:
            k: at least 1.

        Raises:
            ValueError: ``k`` is less than 1.
        """
        if k < 1:
            raise ValueError(f"CORRECTION.THRESHOLD.TOP_K must be at least 1, got {k}")
        self.k = k

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        return {"k": cfg.CORRECTION.THRESHOLD.TOP_K}

    def __call__(self, areas: Tensor, scores: Tensor) -> Tensor:
        keep = torch.zeros_like(scores, dtype=torch.bool)
        keep[scores.argsort(descending=True, stable=True)[: self.k]] = True
        return keep


def _check_score(key: str, tau: float) -> None:
    if not 0 <= tau <= 1:
        raise ValueError(f"CORRECTION.THRESHOLD.{key} must be in [0, 1], got {tau}")

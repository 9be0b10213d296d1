"""Refiners: none, guided (the default, training-free), crf and cascadepsp (optional packages)."""

from .base import REFINERS, Refiner, margin_window
from .cascadepsp import cascadepsp
from .crf import crf
from .guided import guided

__all__ = ["REFINERS", "Refiner", "cascadepsp", "crf", "guided", "margin_window"]

"""Refiners: none, guided (the default, training-free), crf and cascadepsp (optional packages)."""

from .base import REFINERS, Refiner, guided, none, refine_proposals
from .optional import cascadepsp, crf

__all__ = ["REFINERS", "Refiner", "cascadepsp", "crf", "guided", "none", "refine_proposals"]

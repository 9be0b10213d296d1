"""Training, labeling and inference drivers."""

from __future__ import annotations

from typing import Any

__all__ = ["SOHESPredictor"]


def __getattr__(name: str) -> Any:
    # On demand: workers of phase 1 import modules of this folder and have no use for the models behind the predictor.
    if name == "SOHESPredictor":
        from .predictor import SOHESPredictor

        return SOHESPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

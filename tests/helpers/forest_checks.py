"""Invariants of forests."""

from __future__ import annotations

from sohes_d2.structures.forest import Forest
from sohes_d2.structures.masks import coverage_matrix


def check_coverage(forest: Forest, theta_cover: float = 0.9) -> None:
    """Assert that the forest is valid and that parents cover ``theta_cover`` of their children."""
    forest.check()
    coverage = coverage_matrix(forest.masks, forest.masks)
    covered = [coverage[k, parent] for k, parent in enumerate(forest.parents) if parent >= 0]
    assert min(covered, default=1) >= theta_cover

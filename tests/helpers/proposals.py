"""Proposals for tests."""

from __future__ import annotations

import numpy as np

from sohes_d2.exploration.proposals import Proposal


def proposal(box: tuple[int, int, int, int], **fields) -> Proposal:
    """A rectangle (y0, x0, y1, x1)."""
    mask = np.ones((box[2] - box[0], box[3] - box[1]), bool)
    values = {"birth": 0.5, "death": 0.1, "level": 0, "source": "global", "cell": 1.0, "separation": 0.9, **fields}
    return Proposal(box=box, mask=mask, **values)

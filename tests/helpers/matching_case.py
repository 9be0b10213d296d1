"""A small deterministic batch, used to compute reference values with Mask2Former's official matcher and criterion.

Two images with 3 and 2 labels, 5 queries, one class, an output and one auxiliary output. The official code (matcher.py
and criterion.py, with Detectron2's PointRend functions) ran on a CPU, with `weyl_points` in place of ``torch.rand``.
"""

import torch

NUM_POINTS = 64


def weyl_points(num_sets, num_points, device=None):
    """(num_sets, num_points, 2): point k of set s is n (0.75487..., 0.56984...) mod 1, n = s num_points + k + 1."""
    n = torch.arange(1, num_sets * num_points + 1, dtype=torch.float64)
    points = n[:, None] * torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64) % 1
    return points.float().view(num_sets, num_points, 2).to(device)


def layer(phase):
    """Logits (2, 5, 2) and masks (2, 5, 12, 16) of one decoder layer."""
    b, q, k = (torch.arange(n, dtype=torch.float64) for n in (2, 5, 2))
    logits = 2 * torch.sin(1 + phase + 1.3 * b[:, None, None] + 0.7 * q[:, None] + 2.1 * k)
    b, q = b.view(2, 1, 1, 1), q.view(5, 1, 1)
    y, x = torch.arange(12, dtype=torch.float64)[:, None], torch.arange(16, dtype=torch.float64)
    waves = torch.sin(0.5 + phase + b + 0.9 * q + 0.31 * y * (1 + 0.2 * q))
    masks = 3 * waves * torch.cos(0.27 * x * (1 + 0.1 * q) + 0.7 * q + 0.4 * b) + 0.4 * torch.sin(y * x + q)
    return {"pred_logits": logits.float(), "pred_masks": masks.float()}


def outputs():
    return {**layer(0.0), "aux_outputs": [layer(0.6)]}


def targets():
    """Discs and a rectangle of 24 x 32 pixels."""
    y, x = torch.arange(24)[:, None], torch.arange(32)
    first = [(y - 8) ** 2 + (x - 9) ** 2 < 50, (y - 16) ** 2 + (x - 22) ** 2 < 80, (y >= 2) & (y < 9) & (x > 19)]
    second = [(y - 12) ** 2 + (x - 16) ** 2 < 110, (y - 12) ** 2 + (x - 13) ** 2 < 20]
    return [{"labels": torch.zeros(len(m), dtype=torch.int64), "masks": torch.stack(m)} for m in (first, second)]

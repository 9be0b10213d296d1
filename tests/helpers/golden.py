"""Numbers for golden tests: inputs no generator's version changes, and what of the outputs is compared."""

import torch


def noise(*shape, seed=0, scale=1.0):
    """Float64 numbers in [-scale, scale) that do not depend on a random number generator's version."""
    k = torch.arange(torch.Size(shape).numel())
    integers = (7919 * k * k + 104729 * k + 15485863 * seed) % 65537
    return (integers.double() / 32768 - 1).mul(scale).view(shape)


def summary(tensor):
    """Sum, norm and four elements."""
    flat = tensor.detach().double().flatten()
    picked = [flat[i] for i in (0, len(flat) // 3, 2 * len(flat) // 3, -1)]
    return torch.stack([flat.sum(), flat.norm(), *picked])

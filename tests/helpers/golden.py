"""Golden tests: inputs that do not depend on a random number generator, and summaries of outputs."""

import torch


def noise(*shape, seed=0, scale=1.0):
    """Float64 numbers in [-scale, scale) that do not depend on the version of a random number generator."""
    k = torch.arange(torch.Size(shape).numel())
    integers = (7919 * k * k + 104729 * k + 15485863 * seed) % 65537
    return (integers.double() / 32768 - 1).mul(scale).view(shape)


def summary(tensor):
    """(6,) float64: sum, norm and four elements."""
    flat = tensor.detach().double().flatten()
    picked = [flat[i] for i in (0, len(flat) // 3, 2 * len(flat) // 3, -1)]
    return torch.stack([flat.sum(), flat.norm(), *picked])

"""Copy-paste of whole trees: entities of one image, each with its parts, pasted over another image.

After Ghiasi et al. (Simple Copy-Paste, CVPR 2021, section 3), who paste single objects: both images go through
large-scale jitter first, the pasted pixels replace what was there, and the masks underneath lose them. No blending.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .labeled_crop import LabeledCrop

# An entity over this share of the image would not join the image but replace it.
MAX_SHARE = 0.5


def trees_in_random_order(ancestors: np.ndarray, visible: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The trees of an image: each whole, followed by its visible descendants.

    Args:
        ancestors: (N, N) bool, ``[i, j]`` = i is a proper ancestor of j.
        visible: (N,) bool, masks that may be taken. One without a visible ancestor is a whole.
        rng: draws the order.

    Yields:
        (K,) int64 indices, the whole first.
    """
    wholes = np.flatnonzero(visible & ~ancestors[visible].any(axis=0))
    for whole in rng.permutation(wholes):
        yield np.concatenate([[whole], np.flatnonzero(ancestors[whole] & visible)])


def paste(target: LabeledCrop, donor: LabeledCrop, min_area: int) -> LabeledCrop:
    """The target with all masks of the donor pasted over it, in the same place.

    Args:
        target: is left as it is.
        donor: of the same size, with the masks to paste and no others.
        min_area: pixels; masks of the target of which less stays visible are dropped.

    Returns:
        The remaining masks of the target without the pasted pixels, then those of the donor. Ancestors are those of
        either image; pasted entities are not parts of what they cover.
    """
    if not donor.masks:
        return target
    covered = np.zeros(target.image.shape[:2], bool)
    for mask in donor.masks:
        mask.of(covered)[mask.mask] = True
    cut = [mask.without(covered) for mask in target.masks]
    kept = LabeledCrop(
        np.where(covered[:, :, None], donor.image, target.image),
        cut,
        target.ancestors,
    ).subset(np.flatnonzero([mask.area >= min_area for mask in cut]))
    return LabeledCrop(kept.image, kept.masks + donor.masks, _block_diagonal([kept.ancestors, donor.ancestors]))


def _block_diagonal(matrices: Sequence[np.ndarray]) -> np.ndarray:
    joined = np.zeros((sum(len(matrix) for matrix in matrices),) * 2, bool)
    start = 0
    for matrix in matrices:
        joined[start : start + len(matrix), start : start + len(matrix)] = matrix
        start += len(matrix)
    return joined

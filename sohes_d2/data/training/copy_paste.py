"""Copy-paste of trees: entities of one image, each with its parts, are pasted onto another image.

As in Simple Copy-Paste (Ghiasi et al., CVPR 2021, section 3), but with trees instead of single objects: both images are
augmented by large-scale jitter, and pasted pixels replace the image, without blending, and are cut from masks below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .labeled_crop import LabeledCrop

# Entities above this share of the image are not pasted: they would hide most of it.
MAX_SHARE = 0.5


def trees_in_random_order(ancestors: np.ndarray, visible: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the trees of an image: each whole, followed by its visible descendants.

    Args:
        ancestors: (N, N) bool, ``[i, j]`` = i is a proper ancestor of j.
        visible: (N,) bool, masks that may be used; those without a visible ancestor are wholes.
        rng: generator for the order.

    Yields:
        (K,) int64 indices, the whole first.
    """
    wholes = np.flatnonzero(visible & ~ancestors[visible].any(axis=0))
    for whole in rng.permutation(wholes):
        yield np.concatenate([[whole], np.flatnonzero(ancestors[whole] & visible)])


def paste(target: LabeledCrop, donor: LabeledCrop, min_area: int) -> LabeledCrop:
    """Paste all masks of the donor onto the target, at the same positions.

    Args:
        target: not modified.
        donor: of the same size, with only the masks to paste.
        min_area: pixels; masks of the target with a smaller remaining area are dropped.

    Returns:
        The remaining masks of the target without the pasted pixels, then those of the donor. Ancestors are kept within
        each image; a pasted entity does not become a part of the entities below it.
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

"""The one carrier of hierarchy: the masks of an image and who is inside whom, from clustering to json to model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .masks import RLE, coverage_matrix, mask_areas, mask_boxes, rle_from_coco, rle_to_json

NO_PARENT = -1
NO_LEVEL = -1
TIE = 1e-6  # sums of probabilities that differ by less are equal


class ForestError(ValueError):
    """A rule of a forest is broken; the message says which and where."""


class Forest:
    """Masks of one image and who is inside whom (SOHES, section 3: entities, their parts, the parts of these).

    Attributes:
        masks: N compressed RLEs, all of ``image_size``.
        parents: (N,) int64, index of the parent, -1 for a root. A root is a whole, its children are parts, and so on.
        scores: (N,) float32 in [0, 1].
        levels: (N,) int64, index of the merging threshold at which a mask first stood; -1 where that has no meaning.
        sources: N strings, the step that found each mask ("global", "local", "model", ...).
        image_size: (H, W) in pixels.
    """

    def __init__(
        self,
        masks: Sequence[RLE],
        parents: Sequence[int] | np.ndarray,
        image_size: tuple[int, int],
        scores: Sequence[float] | np.ndarray | None = None,
        levels: Sequence[int] | np.ndarray | None = None,
        sources: Sequence[str] | None = None,
    ):
        n = len(masks)
        self.masks = list(masks)
        self.parents = np.asarray(parents, dtype=np.int64).reshape(-1)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.scores = np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32).reshape(-1)
        self.levels = np.full(n, NO_LEVEL) if levels is None else np.asarray(levels, np.int64).reshape(-1)
        self.sources = [""] * n if sources is None else list(sources)
        for name in ("parents", "scores", "levels", "sources"):
            if len(getattr(self, name)) != n:
                raise ForestError(f"{n} masks but {len(getattr(self, name))} {name}")

    def __len__(self) -> int:
        return len(self.masks)

    def __repr__(self) -> str:
        return f"Forest({len(self)} masks, {len(self.roots())} roots, image_size={self.image_size})"

    @classmethod
    def from_masks(
        cls,
        masks: Sequence[RLE],
        image_size: tuple[int, int],
        theta_cover: float = 0.9,
        coverage: np.ndarray | None = None,
        **fields: Any,
    ) -> Forest:
        """Read the hierarchy off the masks: A is inside B iff B covers A by ``theta_cover`` and not the reverse.

        The parent is the smallest mask a mask is inside of (SOHES section 3.1; threshold as in HASSOD). Since "inside"
        implies a strictly larger area, no cycle can arise, and masks that cover each other both ways are siblings.

        Args:
            masks: N RLEs of ``image_size``.
            theta_cover: coverage in (0, 1].
            coverage: (N, N) of `coverage_matrix`, where it is known already.
            fields: ``scores``, ``levels``, ``sources`` as in the constructor.
        """
        if coverage is None:
            coverage = coverage_matrix(masks, masks)
        covered = coverage >= theta_cover
        return cls(masks, _smallest(covered & ~covered.T, mask_areas(masks)), image_size, **fields)

    @classmethod
    def from_probabilities(
        cls,
        masks: Sequence[RLE],
        probabilities: np.ndarray,
        image_size: tuple[int, int],
        threshold: float = 0.5,
        theta_cover: float = 0.5,
        **fields: Any,
    ) -> Forest:
        """Decode predicted ancestor probabilities to a forest that cannot have a cycle.

        A pair is kept if its probability passes ``threshold``, the ancestor is strictly larger, and the masks agree:
        the ancestor covers the descendant by ``theta_cover``. From the largest mask to the smallest, each gets the kept
        ancestor as its parent whose whole chain of ancestors is the likeliest: the sum of (probability - threshold)
        over the chain is largest, where a pair that is not kept counts as improbable (0). Of equal chains,
        the one of the smallest parent; with predictions that agree with one another, that is the smallest ancestor.

        Args:
            masks: N RLEs of ``image_size``.
            probabilities: (N, N) in [0, 1], ``[i, j]`` = probability that i is an ancestor of j; the diagonal is
            ignored.
            threshold: probability in [0, 1].
            theta_cover: coverage in [0, 1]; 0 trusts the probabilities alone.
            fields: ``scores``, ``levels``, ``sources`` as in the constructor.
        """
        probabilities = np.asarray(probabilities, np.float64)
        if probabilities.shape != (len(masks), len(masks)):
            raise ForestError(f"{len(masks)} masks need a square matrix of probabilities, got {probabilities.shape}")
        areas = mask_areas(masks)
        inside = (probabilities.T >= threshold) & (areas[None, :] > areas[:, None])
        if theta_cover > 0:
            for k in np.flatnonzero(inside.any(axis=1)):  # all pairs would take long
                above = np.flatnonzero(inside[k])
                inside[k, above] = coverage_matrix([masks[k]], [masks[j] for j in above])[0] >= theta_cover
        return cls(masks, _likeliest(inside, probabilities, threshold, areas), image_size, **fields)

    def roots(self) -> np.ndarray:
        """Indices of the wholes."""
        return np.flatnonzero(self.parents == NO_PARENT)

    def children(self, index: int) -> np.ndarray:
        """Indices of the direct children of a mask."""
        return np.flatnonzero(self.parents == index)

    def depths(self) -> np.ndarray:
        """(N,) int64: 0 for a whole, 1 for a part, 2 and more for subparts.

        Raises:
            ForestError: the parents run in a circle.
        """
        depths = np.zeros(len(self), np.int64)
        current = self.parents.copy()
        for _ in range(len(self) + 1):
            above = current != NO_PARENT
            if not above.any():
                return depths
            depths[above] += 1
            current[above] = self.parents[current[above]]
        raise ForestError(f"the parents of mask {int(np.flatnonzero(current != NO_PARENT)[0])} run in a circle")

    def ancestors(self) -> np.ndarray:
        """(N, N) bool, ``[i, j]`` = i is a proper ancestor of j: the transitive closure of the parents."""
        matrix = np.zeros((len(self), len(self)), dtype=bool)
        for index in np.argsort(self.depths(), kind="stable"):
            parent = self.parents[index]
            if parent != NO_PARENT:
                matrix[:, index] = matrix[:, parent]
                matrix[parent, index] = True
        return matrix

    def subset(self, keep: Sequence[int] | np.ndarray) -> Forest:
        """The forest of some masks, each linked to its nearest kept ancestor: ancestors among them stay the same.

        Args:
            keep: (N,) bool, or indices in the wanted order without repetition.
        """
        keep = np.asarray(keep)
        index = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        if len(np.unique(index)) != len(index):
            raise ForestError("subset needs each index once")
        new_index = np.full(len(self) + 1, NO_PARENT)  # the last entry stands for "no parent", which -1 addresses
        new_index[index] = np.arange(len(index))
        parents = self.parents[index]
        self.depths()  # a circle would never end below
        while True:
            dropped = (parents != NO_PARENT) & (new_index[parents] == NO_PARENT)
            if not dropped.any():
                break
            parents[dropped] = self.parents[parents[dropped]]
        return Forest(
            [self.masks[i] for i in index],
            new_index[parents],
            self.image_size,
            scores=self.scores[index],
            levels=self.levels[index],
            sources=[self.sources[i] for i in index],
        )

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """Json-ready COCO annotations with ``parent_id`` (0 = root), ``depth``, ``level``, ``source`` and ``score``.

        Ids run from ``first_id``, which must be positive, in the order of the masks.
        """
        if first_id < 1:
            raise ForestError(f"first_id must be positive, since parent_id 0 stands for a root; got {first_id}")
        areas, boxes, depths = mask_areas(self.masks), mask_boxes(self.masks), self.depths()
        return [
            {
                "id": first_id + k,
                "image_id": image_id,
                "category_id": 1,
                "iscrowd": 0,
                "area": int(areas[k]),
                "bbox": [float(v) for v in boxes[k]],
                "score": round(float(self.scores[k]), 6),
                "parent_id": 0 if self.parents[k] == NO_PARENT else int(first_id + self.parents[k]),
                "depth": int(depths[k]),
                "level": int(self.levels[k]),
                "source": self.sources[k],
                "segmentation": rle_to_json(self.masks[k]),
            }
            for k in range(len(self))
        ]

    @classmethod
    def from_coco(cls, annotations: Sequence[dict[str, Any]], image_size: tuple[int, int]) -> Forest:
        """The forest of one image's COCO annotations; those without ``parent_id`` are roots, without ``score`` certain.

        Raises:
            ForestError: two annotations share an id, or a parent is not among the annotations.
            ValueError: a segmentation that is none, or of another size than the image.
        """
        index = {a["id"]: k for k, a in enumerate(annotations)}
        if len(index) != len(annotations):
            raise ForestError("two annotations of one image share an id")
        parents = []
        for a in annotations:
            parent_id = a.get("parent_id") or 0
            if parent_id and parent_id not in index:
                raise ForestError(
                    f"annotation {a['id']} names parent {parent_id}, which is not an annotation of its image"
                )
            parents.append(index[parent_id] if parent_id else NO_PARENT)
        return cls(
            [rle_from_coco(a["segmentation"], image_size) for a in annotations],
            parents,
            image_size,
            scores=[a.get("score", 1.0) for a in annotations],
            levels=[a.get("level", NO_LEVEL) for a in annotations],
            sources=[a.get("source", "") for a in annotations],
        )

    def check(self, theta_cover: float | None = None) -> None:
        """Verify the rules: sizes, parents in range, no circle, scores in [0, 1], optionally coverage by the parent.

        Raises:
            ForestError: with the first broken rule and the masks concerned.
        """
        for k, rle in enumerate(self.masks):
            if tuple(rle["size"]) != self.image_size:
                raise ForestError(f"mask {k} has size {tuple(rle['size'])}, the image {self.image_size}")
        for k, parent in enumerate(self.parents):
            if parent != NO_PARENT and not 0 <= parent < len(self):
                raise ForestError(f"mask {k} has parent {parent}, outside 0..{len(self) - 1}")
        self.depths()
        bad = np.flatnonzero(~((self.scores >= 0) & (self.scores <= 1)))
        if len(bad):
            raise ForestError(f"mask {bad[0]} has score {self.scores[bad[0]]}, outside [0, 1]")
        if theta_cover is not None:
            for k in np.flatnonzero(self.parents != NO_PARENT):
                covered = coverage_matrix([self.masks[k]], [self.masks[self.parents[k]]])[0, 0]
                if covered < theta_cover:
                    raise ForestError(
                        f"mask {k} is covered by its parent {self.parents[k]} by {covered:.3f}, "
                        f"under theta_cover {theta_cover}"
                    )


def _smallest(inside: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """(N,) parent of each mask: the smallest it is inside of (``inside[i, j]`` = i is inside j), ties by index."""
    if not len(areas):
        return np.zeros(0, np.int64)
    candidate_areas = np.where(inside, areas[None, :], np.iinfo(np.int64).max)
    return np.where(inside.any(axis=1), candidate_areas.argmin(axis=1), NO_PARENT)


def _likeliest(inside: np.ndarray, probabilities: np.ndarray, threshold: float, areas: np.ndarray) -> np.ndarray:
    """(N,) parents with the likeliest chains, given (N, N) ``inside``, [i, j] = i may be inside j."""
    parents = np.full(len(areas), NO_PARENT)
    chains = np.eye(len(areas))  # [i, j] = 1 if j is i or an ancestor of i
    order = np.argsort(-areas, kind="stable")
    rank = np.argsort(order)
    for k in order[inside[order].any(axis=1)]:
        gain = np.where(inside[k], probabilities[:, k], 0.0) - threshold
        values = np.where(inside[k], chains @ gain, -np.inf)
        best = values.max()
        if best < -TIE:
            continue
        equal = np.flatnonzero(values >= best - TIE)
        parents[k] = equal[np.argmax(rank[equal])]
        chains[k] += chains[parents[k]]
    return parents

"""Forest: the masks of an image and their hierarchy, shared by clustering, label files and models."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Callable

import numpy as np

from ..errors import InputError
from . import exports, hierarchy
from .entity import Entity
from .files import open_regular, write_json
from .hierarchy import NO_PARENT, Rules
from .masks import RLE, coverage_matrix, encode_window, mask_areas, mask_boxes, rle_from_coco, rle_to_json

__all__ = ["NO_LEVEL", "NO_PARENT", "Forest"]

NO_LEVEL = -1


class Forest:
    """Masks of one image with their parents: wholes, parts and subparts (SOHES, section 3).

    >>> forest[0].mask, forest["2.1"].score             # by index or by path name
    >>> [entity.name for entity in forest.select(20)]   # the 20 entities that explain the photo best

    Forests are immutable: all methods return new ones.

    Attributes:
        masks: N compressed RLEs, all of ``image_size``.
        parents: (N,) int64, index of the parent, -1 for a root. A root is a whole, its children are parts, and so on.
        scores: (N,) float32 in [0, 1].
        levels: (N,) int64, index of the merging threshold theta_merge at which a mask first appeared; -1 if undefined.
        sources: N strings, the step that found each mask ("look0", "global", "local", "model", ...).
        image_size: (H, W) in pixels.
        photo: (H, W, 3) uint8 RGB, the background of `plot`; None if unknown.
        file_name: file name of the photo; "" if unknown.
        rules: thresholds of `collapse` and `select`.
    """

    def __init__(
        self,
        masks: Sequence[RLE],
        parents: Sequence[int] | np.ndarray,
        image_size: tuple[int, int],
        scores: Sequence[float] | np.ndarray | None = None,
        levels: Sequence[int] | np.ndarray | None = None,
        sources: Sequence[str] | None = None,
        photo: np.ndarray | None = None,
        rules: Rules | None = None,
        file_name: str = "",
    ):
        n = len(masks)
        self.masks = list(masks)
        self.parents = np.asarray(parents, dtype=np.int64).reshape(-1)
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.scores = np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32).reshape(-1)
        self.levels = np.full(n, NO_LEVEL) if levels is None else np.asarray(levels, np.int64).reshape(-1)
        self.sources = [""] * n if sources is None else list(sources)
        self.photo = photo
        self.rules = rules or Rules()
        self.file_name = file_name
        for name in ("parents", "scores", "levels", "sources"):
            if len(getattr(self, name)) != n:
                raise InputError(f"{n} masks but {len(getattr(self, name))} {name}")

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
        max_child_area: float = 1.0,
        coverage: np.ndarray | None = None,
        **fields: Any,
    ) -> Forest:
        """Compute the hierarchy from the masks, see `hierarchy.parents_by_coverage`.

        Args:
            masks: N RLEs of ``image_size``.
            theta_cover: coverage in (0, 1].
            max_child_area: largest area of a mask as a share of its parent's area, in (0, 1].
            coverage: (N, N) result of `coverage_matrix`, if already computed.
            fields: ``scores``, ``levels``, ``sources``, ``photo``, ``rules`` as in the constructor.
        """
        if coverage is None:
            coverage = coverage_matrix(masks, masks)
        parents = hierarchy.parents_by_coverage(coverage, mask_areas(masks), theta_cover, max_child_area)
        return cls(masks, parents, image_size, **fields)

    @classmethod
    def from_probabilities(
        cls,
        masks: Sequence[RLE],
        probabilities: np.ndarray,
        image_size: tuple[int, int],
        threshold: float = 0.5,
        theta_cover: float = 0.5,
        max_child_area: float = 1.0,
        **fields: Any,
    ) -> Forest:
        """Decode predicted ancestor probabilities to a forest, see `hierarchy.parents_by_probability`.

        Args:
            masks: N RLEs of ``image_size``.
            probabilities: (N, N) in [0, 1], ``[i, j]`` = probability that i is an ancestor of j; the diagonal is
                ignored.
            threshold: probability in [0, 1].
            theta_cover: coverage in [0, 1]; 0: only the probabilities count.
            max_child_area: largest area of a mask as a share of its parent's area, in (0, 1].
            fields: ``scores``, ``levels``, ``sources``, ``photo``, ``rules`` as in the constructor.
        """
        if np.shape(probabilities) != (len(masks), len(masks)):
            shape = np.shape(probabilities)
            raise InputError(f"{len(masks)} masks need a square matrix of probabilities, got {shape}")
        parents = hierarchy.parents_by_probability(
            probabilities, mask_areas(masks), _coverage_of(masks), threshold, theta_cover, max_child_area
        )
        return cls(masks, parents, image_size, **fields)

    # ------------------------------------------------------------------------------------------------------------------
    # Entities.

    def __getitem__(self, key: int | str | slice) -> Entity | list[Entity]:
        """The entity with an index or a path name such as "2.1.3"; a list of entities for a slice.

        Raises:
            IndexError: index out of range.
            KeyError: no such name.
        """
        if isinstance(key, str):
            try:
                return Entity(self, self._index_of_name[key])
            except KeyError:
                raise KeyError(f"no entity is named {key!r}; names are paths such as '2.1', starting at '1'") from None
        if isinstance(key, slice):
            return [Entity(self, k) for k in range(len(self))[key]]
        return Entity(self, range(len(self))[key])

    def __iter__(self) -> Iterator[Entity]:
        return (Entity(self, k) for k in range(len(self)))

    @cached_property
    def areas(self) -> np.ndarray:
        """(N,) int64 areas in pixels."""
        return mask_areas(self.masks)

    @cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) float64 tight boxes (x, y, width, height) in pixels."""
        return mask_boxes(self.masks)

    @cached_property
    def names(self) -> list[str]:
        """N path names such as "2.1.3": wholes, and the parts of each, are numbered from the largest."""
        return hierarchy.path_names(self.parents, np.lexsort((-self.scores, -self.areas)))

    @cached_property
    def _index_of_name(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.names)}

    @cached_property
    def _depths(self) -> np.ndarray:
        return hierarchy.depths_of(self.parents)

    @cached_property
    def _children(self) -> list[np.ndarray]:
        return hierarchy.children_of(self.parents)

    @property
    def wholes(self) -> list[Entity]:
        """The roots."""
        return [Entity(self, int(k)) for k in self.roots()]

    def at(self, x: float, y: float) -> list[Entity]:
        """The masks at a point, from a whole down to the smallest mask that contains the pixel; empty if there is none.

        Args:
            x, y: position in pixels, from 0.

        Raises:
            ValueError: a point outside the image.
        """
        column, row = int(np.floor(x)), int(np.floor(y))
        height, width = self.image_size
        if not (0 <= column < width and 0 <= row < height):
            raise ValueError(f"the point ({x}, {y}) is outside an image of {width} x {height} pixels")
        pixel = encode_window(np.ones((1, 1), bool), (row, column), self.image_size)
        inside = np.flatnonzero(coverage_matrix([pixel], self.masks)[0] > 0) if len(self) else ()
        if not len(inside):
            return []
        return Entity(self, int(inside[np.argmin(self.areas[inside])])).chain

    def in_box(self, box: Sequence[float]) -> list[Entity]:
        """The masks inside a box: the best match, then repeatedly its largest part.

        Masks count as inside if the box covers ``rules.theta_cover`` of them. The best match is the one whose bounding
        box has the highest IoU with ``box``. Empty if no mask is inside.

        Args:
            box: (x, y, width, height) in pixels.

        Raises:
            ValueError: not four numbers, or a box without pixels of the image.
        """
        x, y, width, height = (float(v) for v in box)
        rows, columns = self.image_size
        x0, y0 = max(0, round(x)), max(0, round(y))
        x1, y1 = min(columns, round(x + width)), min(rows, round(y + height))
        if x1 <= x0 or y1 <= y0:
            raise ValueError(f"the box {tuple(box)} (x, y, width, height) has no pixel of a {columns} x {rows} image")
        if not len(self):
            return []
        window = encode_window(np.ones((y1 - y0, x1 - x0), bool), (y0, x0), self.image_size)
        inside = coverage_matrix(self.masks, [window])[:, 0] >= self.rules.theta_cover
        if not inside.any():
            return []
        ends = self.boxes[:, :2] + self.boxes[:, 2:]
        shared = np.minimum(ends, (x1, y1)) - np.maximum(self.boxes[:, :2], (x0, y0))
        common = np.prod(np.maximum(shared, 0), axis=1)
        ious = common / (np.prod(self.boxes[:, 2:], axis=1) + (x1 - x0) * (y1 - y0) - common)
        chain = [Entity(self, int(np.argmax(np.where(inside, ious, -1.0))))]
        while children := chain[-1].children:
            chain.append(max(children, key=lambda entity: entity.area))
        return chain

    # ------------------------------------------------------------------------------------------------------------------
    # Hierarchy.

    def roots(self) -> np.ndarray:
        """Indices of the wholes."""
        return np.flatnonzero(self.parents == NO_PARENT)

    def children(self, index: int) -> np.ndarray:
        """Indices of the direct children of a mask."""
        return self._children[index]

    def depths(self) -> np.ndarray:
        """(N,) int64: 0 for a whole, 1 for a part, 2 or more for subparts.

        Raises:
            ValueError: the parents form a cycle.
        """
        return self._depths.copy()

    def ancestors(self) -> np.ndarray:
        """(N, N) bool, ``[i, j]`` = i is a proper ancestor of j: the transitive closure of the parents."""
        return hierarchy.ancestors_of(self.parents)

    def subset(self, keep: Sequence[int] | np.ndarray) -> Forest:
        """The forest of a subset of the masks, each linked to its nearest kept ancestor.

        Args:
            keep: (N,) bool, or unique indices in the desired order.
        """
        keep = np.asarray(keep)
        index = np.flatnonzero(keep) if keep.dtype == bool else keep.astype(np.int64)
        if len(np.unique(index)) != len(index):
            raise InputError("subset needs each index once")
        kept = np.zeros(len(self), bool)
        kept[index] = True
        return self._taken(index, hierarchy.linked_to_kept(self.parents, kept))

    def _taken(self, index: np.ndarray, parents: np.ndarray) -> Forest:
        """The masks ``index`` with ``parents``, (N,) indices into this forest that are all in ``index``."""
        new_index = np.full(len(self) + 1, NO_PARENT)  # the last entry, addressed by -1, means "no parent"
        new_index[index] = np.arange(len(index))
        return Forest(
            [self.masks[i] for i in index],
            new_index[parents[index]],
            self.image_size,
            scores=self.scores[index],
            levels=self.levels[index],
            sources=[self.sources[i] for i in index],
            photo=self.photo,
            rules=self.rules,
            file_name=self.file_name,
        )

    def filter(
        self,
        min_score: float = 0.0,
        max_depth: int | None = None,
        min_area: float = 0,
        max_area: float | None = None,
        keep: Callable[[Entity], bool] | None = None,
    ) -> Forest:
        """Keep the masks that meet all conditions, each linked to its nearest kept ancestor.

        Args:
            min_score: smallest score, in [0, 1].
            max_depth: largest depth in this forest; None for any.
            min_area, max_area: smallest and largest area in pixels; ``max_area`` None for any.
            keep: additional condition, called for the entities that meet the others.
        """
        passes = (self.scores >= min_score) & (self.areas >= min_area)
        if max_area is not None:
            passes &= self.areas <= max_area
        if max_depth is not None:
            passes &= self.depths() <= max_depth
        if keep is not None:
            for k in np.flatnonzero(passes):
                passes[k] = bool(keep(Entity(self, int(k))))
        return self.subset(passes)

    def collapse(self, rules: Rules | None = None) -> Forest:
        """Simplify the forest for display: no near-duplicates, disjoint wholes, few levels.

        See `hierarchy.collapse`. Only the order of the scores matters.

        Args:
            rules: thresholds; by default those of this forest.
        """
        keep, parents = self._collapsed(rules or self.rules)
        return self._taken(np.flatnonzero(keep), parents)

    def _collapsed(self, rules: Rules, wholes: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        return hierarchy.collapse(self.parents, self.areas, self.scores, _coverage_of(self.masks), rules, wholes)

    def collapsed_indices(self) -> np.ndarray:
        """Indices of the masks that `collapse` keeps, ascending."""
        return np.flatnonzero(self._collapsed(self.rules)[0])

    def selected_indices(self, count: int, rules: Rules | None = None) -> np.ndarray:
        """Indices of the masks that `select` keeps, by descending value."""
        if count < 0:
            raise ValueError(f"count must be at least 0, got {count}")
        rules = rules or self.rules
        shares = self.areas / max(1, self.image_size[0] * self.image_size[1])
        values = hierarchy.entity_values(self.scores, shares, count, rules.rank_scale)
        return hierarchy.disjoint_cut(
            self.parents, self.areas, values, _coverage_of(self.masks), count, rules.max_overlap
        )

    def select(self, count: int, parts: bool = False, rules: Rules | None = None) -> Forest:
        """Select the entities that explain the photo best: at most ``count`` masks without overlap.

        They are the cut through the trees with the largest sum of `hierarchy.entity_values`. It is exact if masks
        overlap only when nested (`hierarchy.best_cut`); otherwise the better of two overlapping masks is kept and the
        rest is selected again (`hierarchy.disjoint_cut`).

        Args:
            count: at least 0.
            parts: also keep the masks inside each entity, simplified as by `collapse`; the entities become roots.
            rules: thresholds; by default those of this forest.

        Returns:
            The entities as wholes, by descending value; with ``parts``, followed by their parts.
        """
        rules = rules or self.rules
        chosen = self.selected_indices(count, rules)
        if not parts:
            return self.subset(chosen)
        keep, parents = self._collapsed(rules, chosen)
        inside = np.setdiff1d(np.flatnonzero(keep), chosen)
        return self._taken(np.concatenate([chosen, inside]), parents)

    def to_coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """Json-ready COCO annotations with ``parent_id`` (0 = root), ``depth``, ``level``, ``source`` and ``score``.

        Ids run from ``first_id``, which must be positive, in the order of the masks.
        """
        if first_id < 1:
            raise InputError(f"first_id must be positive, since parent_id 0 stands for a root; got {first_id}")
        areas, boxes, depths = self.areas, self.boxes, self.depths()
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
        """The forest of one image's COCO annotations. Without ``parent_id`` all are roots; ``score`` defaults to 1.

        Raises:
            InputError: two annotations share an id, or a parent is not among the annotations.
            ValueError: an invalid segmentation, or one of another size than the image.
        """
        index = {a["id"]: k for k, a in enumerate(annotations)}
        if len(index) != len(annotations):
            raise InputError("two annotations of one image share an id")
        parent_ids = [a.get("parent_id") or 0 for a in annotations]
        missing = set(parent_ids) - {0} - set(index)
        if missing:
            raise InputError(f"the parent {min(missing, key=str)} is not an annotation of its image")
        return cls(
            [rle_from_coco(a["segmentation"], image_size) for a in annotations],
            [index[parent_id] if parent_id else NO_PARENT for parent_id in parent_ids],
            image_size,
            scores=[a.get("score", 1.0) for a in annotations],
            levels=[a.get("level", NO_LEVEL) for a in annotations],
            sources=[a.get("source", "") for a in annotations],
        )

    # ------------------------------------------------------------------------------------------------------------------
    # Exports.

    to_numpy = exports.to_numpy
    to_pandas = exports.to_pandas
    to_supervision = exports.to_supervision
    to_sam = exports.to_sam
    plot = exports.plot
    _repr_html_ = exports.to_html

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a COCO json of this image, readable by `load` and all commands. It does not contain the photo.

        Raises:
            OutputError: the file cannot be written; an existing one is unchanged.
        """
        height, width = self.image_size
        content = {
            "images": [{"id": 1, "file_name": self.file_name, "height": height, "width": width}],
            "annotations": self.to_coco(image_id=1),
            "categories": [{"id": 1, "name": "entity"}],
        }
        write_json(path, content, indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Forest:
        """The forest of a COCO json with one image.

        Raises:
            OSError: the file cannot be read.
            InputError: not a COCO json with exactly one image, or an invalid mask, parent or score.
        """
        with open_regular(path) as file:
            try:
                content = json.load(file)
                (record,) = content["images"]
                forest = cls.from_coco(content["annotations"], (record["height"], record["width"]))
                forest.file_name = record.get("file_name", "")
                forest.check()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{os.fspath(path)!r} is not a COCO json with one image: {error!r:.300}") from error
        return forest

    def check(self) -> None:
        """Verify that sizes match, parents are in range and form no cycle, and scores are in [0, 1].

        Raises:
            ValueError: the message gives the first violation and its mask.
        """
        for k, rle in enumerate(self.masks):
            if tuple(rle["size"]) != self.image_size:
                raise InputError(f"mask {k} has size {tuple(rle['size'])}, the image {self.image_size}")
        for k, parent in enumerate(self.parents):
            if parent != NO_PARENT and not 0 <= parent < len(self):
                raise InputError(f"mask {k} has parent {parent}, outside 0..{len(self) - 1}")
        self.depths()
        bad = np.flatnonzero(~((self.scores >= 0) & (self.scores <= 1)))
        if len(bad):
            raise InputError(f"mask {bad[0]} has score {self.scores[bad[0]]}, outside [0, 1]")


def _coverage_of(masks: Sequence[RLE]) -> hierarchy.Coverage:
    """Coverage of one mask by others, computed on demand."""
    return lambda k, others: coverage_matrix([masks[k]], [masks[j] for j in others])[0]

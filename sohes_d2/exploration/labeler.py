"""Self-exploration end to end: one image in, a forest of pseudo-label masks out (SOHES, section 3.1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from ..structures.entity import Selection
from ..structures.forest import Forest
from ..structures.images import as_rgb, reduced
from ..structures.masks import RLE, encode_masks, encode_window
from .border_network import LearnedBorders
from .candidates import Candidates, MaskFilter
from .features import FeatureExtractor, build_feature_extractor, extractor_by_name
from .looks import Looks
from .merge_tree import MergeTree
from .proposals import LocalReclustering, Proposal, proposals_from_tree
from .refinement import REFINERS, Refiner, none, refine_proposals
from .regions import STRENGTH_UNIT, border_strength, resize_labels
from .scoring import EntityScorer

_BUILD: Any = object()  # default of `extractor` in `PseudoLabeler.from_cfg`: build it from the config


class Evidence(NamedTuple):
    """Network outputs for an image: the part of labeling that needs a device.

    Attributes:
        features: (rows, cols, C) on a grid that tiles the image; float16 from a GPU, to halve the transfer.
        borders: (h, w) uint8 learned border strength at the size used for clustering; (0, 0) without a network.
    """

    features: np.ndarray
    borders: np.ndarray


_NO_BORDERS = np.zeros((0, 0), np.uint8)


class PseudoLabeler:
    """Generates a forest of masks from an image, without labels or training.

    >>> forest = PseudoLabeler("auto").generate("photo.jpg")

    `generate` runs all steps. To distribute them, call `evidence` in the process with the GPU and `finish` in workers.

    Args:
        extractor: feature extractor, or its EXPLORATION.FEATURES.NAME, see `build_feature_extractor`; None for a
            worker that only runs `finish`.
        looks: leaves of the merge trees, and settings of the merging.
        theta_merge: merging thresholds, descending: only nodes present in a snapshot are candidates [P]; empty: every
            node.
        scorer: ranks the candidates.
        reclustering: local re-clustering of some regions; needs grid leaves and the extractor.
        refiner: refines the outlines of the masks.
        mask_filter: selects the masks to keep.
        fill_holes: whether holes are filled after refinement.
        theta_cover: A is inside B if B covers this share of A, but not vice versa [HASSOD: 0.9].
        max_pixels: larger photos are reduced to this many pixels for clustering; masks have the size of the photo. 0:
            no limit.
        selection: which of the masks are returned; None: all, as needed for training.
        borders: learned border strength, averaged with that of the gradient; None: the gradient alone.
        learned_share: weight of ``borders`` in this average, in [0, 1].
    """

    def __init__(
        self,
        extractor: FeatureExtractor | str | None,
        *,
        looks: Looks | None = None,
        theta_merge: Sequence[float] = (),
        scorer: EntityScorer | None = None,
        reclustering: LocalReclustering | None = None,
        refiner: Refiner | None = None,
        mask_filter: MaskFilter | None = None,
        fill_holes: bool = True,
        theta_cover: float = 0.9,
        max_pixels: int = 750_000,
        selection: Selection | None = None,
        borders: LearnedBorders | None = None,
        learned_share: float = 0.5,
    ):
        self.extractor = extractor_by_name(extractor) if isinstance(extractor, str) else extractor
        self.looks = looks or Looks()
        self.theta_merge = tuple(float(theta) for theta in theta_merge)
        if list(self.theta_merge) != sorted(set(self.theta_merge), reverse=True):
            raise ValueError(
                f"EXPLORATION.THETA_MERGE must fall from the first to the last, got {list(self.theta_merge)}"
            )
        self.scorer = scorer or EntityScorer()
        self.reclustering = reclustering or LocalReclustering()
        self.refiner = refiner or none()
        self.mask_filter = mask_filter or MaskFilter()
        self.fill_holes = fill_holes
        self.theta_cover = theta_cover
        self.max_pixels = max_pixels
        self.selection = selection
        self.borders = borders
        self.learned_share = learned_share
        if not 0 <= learned_share <= 1:
            raise ValueError(f"EXPLORATION.BORDER.LEARNED_SHARE must be in [0, 1], got {learned_share}")
        if self.reclustering.enabled and not (self.looks.leaves == "grid" and self.theta_merge):
            raise ValueError(
                "EXPLORATION.LOCAL_RECLUSTERING needs LEAVES.NAME grid and THETA_MERGE; small entities come from "
                "LOOKS instead"
            )

    @classmethod
    def from_cfg(cls, cfg: Any, extractor: Any = _BUILD) -> PseudoLabeler:
        """Build the labeler of ``cfg.EXPLORATION``; ``extractor=None`` omits the extractor and its weights.

        Raises:
            ValueError: an unknown name or a value out of range.
            ImportError: an optional package is missing; the message names the command that installs it.
        """
        node = cfg.EXPLORATION
        border = node.BORDER
        if node.REFINEMENT.NAME not in REFINERS:
            names = ", ".join(name for name, _ in REFINERS)
            raise ValueError(f"EXPLORATION.REFINEMENT.NAME {node.REFINEMENT.NAME!r} is not one of {names}")
        looks = Looks(
            leaves=node.LEAVES.NAME,
            smoothing=node.LEAVES.SMOOTHING,
            window=node.LEAVES.WINDOW,
            border_scales=tuple(border.SCALES),
            border_half=border.HALF,
            **{key: tuple(values) for key, values in _fields(node.LOOKS).items()},
        )
        with_borders = extractor is not None and border.WEIGHTS
        return cls(
            build_feature_extractor(cfg) if extractor is _BUILD else extractor,
            looks=looks,
            theta_merge=list(node.THETA_MERGE),
            scorer=EntityScorer(**_fields(node.SCORE)),
            reclustering=LocalReclustering(**_fields(node.LOCAL_RECLUSTERING)),
            refiner=REFINERS.get(node.REFINEMENT.NAME)(**dict(node.REFINEMENT.OPTIONS)),
            mask_filter=MaskFilter(**_fields(node.FILTER)),
            fill_holes=node.REFINEMENT.FILL_HOLES,
            theta_cover=node.HIERARCHY.THETA_COVER,
            max_pixels=node.MAX_PIXELS,
            borders=LearnedBorders(border.WEIGHTS, cfg.MODEL.DEVICE) if with_borders else None,
            learned_share=border.LEARNED_SHARE,
        )

    @property
    def needs_extractor_to_finish(self) -> bool:
        """Whether `finish` needs the extractor for features of crops."""
        return self.reclustering.enabled

    def describe(self) -> dict[str, Any]:
        """JSON-ready settings: everything the labels depend on besides the image."""
        return {
            "features": None if self.extractor is None else self.extractor.describe(),
            "looks": {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.looks).items()},
            **({"borders": {**self.borders.describe(), "share": self.learned_share}} if self.borders else {}),
            "theta_merge": list(self.theta_merge),
            "score": asdict(self.scorer),
            "local_reclustering": asdict(self.reclustering),
            "refiner": {"name": type(self.refiner).__name__, **self.refiner.describe()},
            "fill_holes": self.fill_holes,
            "filter": asdict(self.mask_filter),
            "theta_cover": self.theta_cover,
            "max_pixels": self.max_pixels,
            **({"selection": self.selection.describe()} if self.selection else {}),
        }

    def generate(self, image: Any) -> Forest:
        """The forest of one image, with its ``photo`` and ``file_name``.

        Args:
            image: a path, Pillow image, array or tensor, see `as_rgb`.

        Raises:
            ImageReadError: a file that cannot be read.
            ValueError: not an image.
        """
        photo = as_rgb(image)
        forest = self.finish(photo, *self.evidence([photo])[0])
        forest.photo = photo
        forest.file_name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
        return forest

    def evidence(self, images: Sequence[np.ndarray]) -> list[Evidence]:
        """Network outputs for images of one size."""
        extractor = self._extractor()
        images = [reduced(image, self.max_pixels) for image in images]
        features = extractor.extract(images)
        borders = self.borders(images) if self.borders else [_NO_BORDERS] * len(images)
        return [
            Evidence(*pair) for pair in zip(features if extractor.on_host else features.astype(np.float16), borders)
        ]

    def _extractor(self) -> FeatureExtractor:
        if self.extractor is None:
            raise ValueError("this labeler was built without a feature extractor; it only supports `finish`")
        return self.extractor

    def finish(self, image: np.ndarray, features: np.ndarray, borders: np.ndarray = _NO_BORDERS) -> Forest:
        """Build the forest from the evidence: merge trees, candidates, scores and hierarchy.

        Args:
            image: (H, W, 3) uint8 RGB.
            features, borders: from `evidence` on the same image.
        """
        size = image.shape[:2]
        image = reduced(image, self.max_pixels)
        features = np.asarray(features, np.float32)
        strength = self._strength(image, borders)
        trees = self.looks.trees(image, features, strength)
        if self.reclustering.enabled or not isinstance(self.refiner, none):
            forest = self._from_masks(image, features.shape[:2], trees, strength, size)
        else:
            forest = self._from_trees(trees, size)
        return self.selection(forest) if self.selection else forest

    def _strength(self, image: np.ndarray, borders: np.ndarray) -> np.ndarray:
        """(H, W) int32 border strength in units of 1 / STRENGTH_UNIT, from the gradient and the network."""
        strength = border_strength(image, self.looks.border_scales, self.looks.border_half)
        if not borders.size:
            return strength
        learned = borders.astype(np.float32) * np.float32(STRENGTH_UNIT / 255)
        mixed = (1 - self.learned_share) * strength.astype(np.float32) + self.learned_share * learned
        return np.rint(mixed).astype(np.int32)

    def _levels(self, tree: MergeTree) -> np.ndarray:
        return tree.levels(self.theta_merge) if self.theta_merge else np.zeros(len(tree), np.int64)

    def _from_trees(self, trees: Sequence[MergeTree], size: tuple[int, int]) -> Forest:
        """Select among the nodes of all trees, without decoding masks."""
        levels = [self._levels(tree) for tree in trees]
        values = [self.scorer.tree(tree, weight) for tree, weight in zip(trees, self.looks.border_weights)]
        pixels = size[0] * size[1]
        nodes = [self.mask_filter.nodes(*of_tree, pixels) for of_tree in zip(trees, values, levels)]
        candidates = Candidates(trees, nodes)
        raw = self.scorer.raw(
            np.concatenate([value[node] for value, node in zip(values, nodes)]), candidates.agreement()
        )
        keep, ranks = self.mask_filter.best_candidates(candidates, raw, self.scorer.remaining)
        scores = self.scorer.calibrated(ranks)
        masks: list[RLE] = [{}] * len(keep)  # each is replaced below
        for t, tree in enumerate(trees):
            members = np.flatnonzero(candidates.tree[keep] == t)
            for k, mask in zip(members, tree.encode(candidates.node[keep[members]], size)):
                masks[k] = mask
        kept_levels = np.concatenate([level[node] for level, node in zip(levels, nodes)])[keep]
        return Forest.from_masks(
            masks,
            size,
            self.theta_cover,
            coverage=candidates.coverage(keep),
            scores=scores,
            levels=kept_levels.tolist() if self.theta_merge else [-1] * len(keep),
            sources=[f"look{t}" for t in candidates.tree[keep]],
        )

    def _from_masks(
        self,
        image: np.ndarray,
        grid: tuple[int, int],
        trees: Sequence[MergeTree],
        strength: np.ndarray,
        size: tuple[int, int],
    ) -> Forest:
        """Local re-clustering and refinement, mask by mask (SOHES section 3.1)."""
        working = image.shape[:2]
        cell = max(working[0] / grid[0], working[1] / grid[1])
        scale = working[0] * working[1] / (size[0] * size[1])
        # Refinement changes areas, so the exact bounds are applied afterwards.
        minimum = self.mask_filter.min_area * scale / 2
        proposals = []
        for tree in trees:
            proposals += proposals_from_tree(tree, self._levels(tree), (0, 0), cell, minimum, image.size)
        if self.reclustering.enabled:
            proposals += self.reclustering.search(image, proposals, self._extractor(), self.theta_merge, minimum)
        refined = refine_proposals(self.refiner, image, self.mask_filter.candidates(proposals), self.fill_holes)
        refined = [p for p in refined if self.mask_filter.accepts(p, working, scale)]
        values = [self.scorer.proposal(p, strength, self.looks.border_weights[0]) for p in refined]
        scores = self.scorer.calibrated(self.scorer.raw(values, [p.agreement for p in refined]))
        masks = [_at_photo_size(p, working, size) for p in refined]
        keep = self.mask_filter.best(masks, scores)
        return Forest.from_masks(
            [masks[k] for k in keep],
            size,
            self.theta_cover,
            scores=scores[keep],
            levels=[refined[k].level for k in keep],
            sources=[refined[k].source for k in keep],
        )


def _at_photo_size(proposal: Proposal, working: tuple[int, int], size: tuple[int, int]) -> RLE:
    """The mask of a proposal in an image of ``working`` size, encoded at the photo's ``size``."""
    if working == size:
        return encode_window(proposal.mask, proposal.box[:2], size)
    whole = proposal.grown(max(working), working).mask
    return encode_masks([resize_labels(whole, size)])[0]


def _fields(node: Any) -> dict[str, Any]:
    """Keys of a config node as keyword arguments of the same names."""
    return {key.lower(): value for key, value in node.items()}

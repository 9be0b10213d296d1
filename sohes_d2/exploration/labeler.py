"""Self-exploration end to end: one image in, a forest of pseudo-label masks out (SOHES, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import cv2
import numpy as np

from ..structures.forest import Forest
from ..structures.masks import encode_window
from .features import FeatureExtractor, build_feature_extractor
from .filtering import MaskFilter
from .merging import merge_regions
from .proposals import Box, Proposal, proposals_from_regions
from .refinement import REFINERS, Refiner, margin_window
from .refinement.guided import guided
from .scoring import EntityScorer
from .zoom import Zoom

_BUILD = object()
# As many tokens as one or two whole images: bounds the memory that many crops take on a device.
_CROPS_PER_BATCH = 32


@dataclass
class Exploration:
    """What the global clustering found in one image, on its way to `PseudoLabeler.finish`.

    Attributes:
        proposals: of the global clustering.
        zoomed: index of the proposal that each crop looks into.
        crops: (y0, x0, y1, x1) in pixels; may be empty.
    """

    proposals: list[Proposal]
    zoomed: list[int]
    crops: list[Box]


class PseudoLabeler:
    """Turns an image into a forest of masks, with no label and no training of its own.

    `generate` does everything here. A driver that has a device and worker processes composes the same steps itself:
    features on the device, `explore` in a worker, `crop_features` on the device, `finish` in a worker.

    Args:
        extractor: features of images; None for a worker that only runs `explore` and `finish`, which then needs
        `thetas`.
        thetas: merging thresholds, descending; None takes the extractor's.
        zoom: local re-clustering.
        refiner: from grid cells to pixels.
        mask_filter: which masks stay.
        fill_holes: whether holes are filled after refinement.
        theta_cover: A is inside B if B covers this share of it, and not the reverse [HASSOD: 0.9].
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None,
        *,
        thetas: Sequence[float] | None = None,
        zoom: Zoom | None = None,
        refiner: Refiner | None = None,
        mask_filter: MaskFilter | None = None,
        fill_holes: bool = True,
        theta_cover: float = 0.9,
    ):
        if not thetas and extractor is None:
            raise ValueError("a labeler without an extractor needs thetas: there is no default to take them from")
        self.extractor = extractor
        self.thetas = tuple(float(theta) for theta in (thetas or extractor.default_thetas))
        if list(self.thetas) != sorted(set(self.thetas), reverse=True):
            raise ValueError(f"EXPLORATION.THETAS must fall from the first to the last, got {list(self.thetas)}")
        self.zoom = zoom or Zoom()
        self.refiner = refiner or guided()
        self.mask_filter = mask_filter or MaskFilter()
        self.fill_holes = fill_holes
        self.theta_cover = theta_cover

    @classmethod
    def from_cfg(cls, cfg: Any, extractor: Any = _BUILD) -> PseudoLabeler:
        """A labeler as ``cfg.EXPLORATION`` says; ``extractor=None`` leaves out the extractor and its weights.

        Raises:
            ValueError: an unknown name or a value out of range.
            ImportError: an optional package is missing; the message names the command.
        """
        node = cfg.EXPLORATION
        if node.REFINEMENT.NAME not in REFINERS:
            names = ", ".join(name for name, _ in REFINERS)
            raise ValueError(f"EXPLORATION.REFINEMENT.NAME {node.REFINEMENT.NAME!r} is not one of {names}")
        return cls(
            build_feature_extractor(cfg) if extractor is _BUILD else extractor,
            thetas=list(node.THETAS),
            zoom=Zoom(**_fields(node.ZOOM)),
            refiner=REFINERS.get(node.REFINEMENT.NAME)(**dict(node.REFINEMENT.OPTIONS)),
            mask_filter=MaskFilter(**_fields(node.FILTER)),
            fill_holes=node.REFINEMENT.FILL_HOLES,
            theta_cover=node.HIERARCHY.THETA_COVER,
        )

    def describe(self) -> dict[str, Any]:
        """Json-ready: everything the labels depend on besides the image."""
        return {
            "features": None if self.extractor is None else self.extractor.describe(),
            "thetas": list(self.thetas),
            "zoom": asdict(self.zoom),
            "refiner": {"name": type(self.refiner).__name__, **self.refiner.describe()},
            "fill_holes": self.fill_holes,
            "filter": asdict(self.mask_filter),
            "theta_cover": self.theta_cover,
        }

    def generate(self, image: np.ndarray) -> Forest:
        """The forest of one image, (H, W, 3) uint8 RGB."""
        state = self.explore(image, self.extractor.extract([image])[0])
        return self.finish(image, state, self.crop_features([image], [state])[0])

    def explore(self, image: np.ndarray, features: np.ndarray) -> Exploration:
        """Global clustering, and the choice of what to look at again.

        Args:
            image: (H, W, 3) uint8 RGB.
            features: (rows, cols, C) of the whole image.
        """
        height, width = image.shape[:2]
        regions = merge_regions(features).regions(self.thetas)
        proposals = proposals_from_regions(
            regions,
            (0, 0, height, width),
            # Refinement moves areas, so that the bounds are only drawn exactly after it.
            min_area=self.mask_filter.min_area / 2,
            max_area=height * width,
        )
        chosen = self.zoom.choose(proposals, (height, width))
        return Exploration(proposals, [index for index, _ in chosen], [box for _, box in chosen])

    def crop_features(self, images: Sequence[np.ndarray], states: Sequence[Exploration]) -> list[np.ndarray | None]:
        """Features of all crops of some images, in batches: per image (crops, rows, cols, C), or None without crops."""
        side = max(1, self.zoom.crop_size // self.extractor.cell)
        crops = [(k, box) for k, state in enumerate(states) for box in state.crops]
        features: list[list[np.ndarray]] = [[] for _ in images]
        for start in range(0, len(crops), _CROPS_PER_BATCH):
            batch = crops[start : start + _CROPS_PER_BATCH]
            extracted = self.extractor.extract_at([self.zoom.crop(images[k], box) for k, box in batch], (side, side))
            for (k, _), values in zip(batch, extracted):
                features[k].append(values)
        return [np.stack(values) if values else None for values in features]

    def finish(self, image: np.ndarray, state: Exploration, crop_features: np.ndarray | None) -> Forest:
        """Local clustering of the crops, refinement, filters, scores and hierarchy.

        Args:
            image: (H, W, 3) uint8 RGB.
            state: of `explore` on the same image.
            crop_features: of `crop_features`, in the order of ``state.crops``.
        """
        image_size = image.shape[:2]
        proposals = list(state.proposals)
        for values, box, index in zip(crop_features if crop_features is not None else [], state.crops, state.zoomed):
            minimum = self.mask_filter.min_area / 2
            proposals += self.zoom.proposals(values, box, state.proposals[index], self.thetas, minimum)
        proposals = self.mask_filter.candidates(proposals)
        refined = [p for p in self._refine(image, proposals) if self.mask_filter.accepts(p, image_size)]
        scorer = EntityScorer(image)
        scores = np.asarray([scorer(proposal) for proposal in refined], np.float32)
        masks = [encode_window(p.mask, p.box[:2], image_size) for p in refined]
        keep = self.mask_filter.best(masks, scores)
        return Forest.from_masks(
            [masks[k] for k in keep],
            image_size,
            self.theta_cover,
            scores=scores[keep],
            levels=[refined[k].level for k in keep],
            sources=[refined[k].source for k in keep],
        )

    def _refine(self, image: np.ndarray, proposals: Sequence[Proposal]) -> list[Proposal]:
        refined: list[Proposal | None] = [None] * len(proposals)
        reaches = [self.refiner.reach(proposal.cell) for proposal in proposals]
        # By reach, since proposals of about one cell size share what a refiner prepares for the image, and since on a
        # large photo that is too much to be held for all sizes at once.
        for reach in sorted(set(reaches)):
            members = [k for k, value in enumerate(reaches) if value == reach]
            refine = self.refiner.on(image, proposals[members[0]].cell)
            for k in members:
                refined[k] = self._refine_one(refine, proposals[k], image.shape[:2], reach)
        return refined

    def _refine_one(self, refine: Any, proposal: Proposal, image_size: tuple[int, int], reach: int) -> Proposal:
        window = margin_window(proposal.box, reach, image_size)
        before = np.zeros((window[0].stop - window[0].start, window[1].stop - window[1].start), dtype=bool)
        y, x = proposal.box[0] - window[0].start, proposal.box[1] - window[1].start
        before[y : y + proposal.mask.shape[0], x : x + proposal.mask.shape[1]] = proposal.mask
        after = refine(window, before)
        either = np.count_nonzero(before | after)
        agreement = np.count_nonzero(before & after) / either if either else 0.0
        if self.fill_holes:
            after = fill_holes(after)
        box = (window[0].start, window[1].start, window[0].stop, window[1].stop)
        return replace(proposal, box=box, mask=after, agreement=agreement).trimmed()


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The (H, W) bool mask with everything inside that no 4-connected path outside the mask leads to."""
    outside = np.ones((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    outside[1:-1, 1:-1] = ~mask
    cv2.floodFill(outside, None, (0, 0), 2, flags=4)
    return outside[1:-1, 1:-1] != 2


def _fields(node: Any) -> dict[str, Any]:
    """The keys of a config node as the keywords that they are named after."""
    return {key.lower(): value for key, value in node.items()}

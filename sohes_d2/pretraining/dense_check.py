"""Dense check: how well do features separate the segments of an image?

The score is the area under the ROC curve (AUC) for classifying pairs of patches of an image as "same segment" or
"different segments" by the cosine of their features: 0.5 is chance, 1 is perfect. No training or clustering is needed,
so it takes seconds. Any COCO json can be used; segments may overlap and nest.

Nearby patches are often in the same segment, so features that encode only position score well. Phase 1 merges only
neighbours; the near AUC therefore matches each "same" pair with a "different" pair at the same distance.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.stats import rankdata

from ..errors import ImageReadError
from ..exploration.features import FeatureExtractor
from ..labels.forests import read_masks
from ..labels.reader import read_label_file, report
from ..labels.schema import Problems
from ..structures.images import read_image
from ..structures.masks import decode_mask

COVERED = 0.5  # a segment owns a cell if it covers at least this share of it
_CANDIDATES = 64  # cells sampled to find a "different" cell at the same distance


@dataclass(frozen=True)
class DenseScore:
    """Result of :meth:`DenseCheck.score`.

    Attributes:
        auc: mean over images of the AUC of same against different pairs.
        near_auc: the same with pairs matched by distance.
        images: number of images used.
        skipped: file name -> reason, for images that are unreadable or have fewer than two segments.
    """

    auc: float
    near_auc: float
    images: int
    skipped: dict[str, str]


class DenseCheck:
    """Segment AUC of feature extractors on a COCO json."""

    def __init__(self, json_file: str, image_root: str, *, max_images: int = 0, pairs: int = 32):
        """
        Args:
            json_file: COCO ground truth; categories are ignored, crowds are skipped.
            image_root: folder of its images.
            max_images: maximum number of images, evenly spread over the file; 0: all.
            pairs: number of pairs of each kind per segment.

        Raises:
            InputError: not a COCO json.
        """
        file = read_label_file(json_file)
        report(json_file, file.problems)
        records = {key: value for key, value in file.images.items() if "file_name" in value}
        if max_images and len(records) > max_images:
            chosen = np.linspace(0, len(records) - 1, max_images).round().astype(int)
            records = {key: records[key] for key in np.array(list(records), object)[chosen]}
        self._segments = {key: [a for a in file.by_image[key] if not a["iscrowd"]] for key in records}
        self._records = records
        self._root, self._where, self._pairs = image_root, json_file, pairs

    def score(self, extractor: FeatureExtractor) -> DenseScore:
        """Score an extractor's features by AUC, averaged over images. Calls with equal grids use the same pairs."""
        scores, skipped = [], {}
        for number, (image_id, record) in enumerate(self._records.items()):
            name = record["file_name"]
            try:
                image = read_image(os.path.join(self._root, name))
            except ImageReadError as error:
                skipped[name] = str(error)
                continue
            features = extractor.extract([image])[0]
            size = image.shape[:2]
            where = f"{self._where}, image {image_id}"
            problems = Problems()
            rles = read_masks(self._segments[image_id], size, problems, where)
            report(self._where, problems)
            masks = (decode_mask(rle) for rle in rles if rle is not None)
            owners = cells_of_segments(masks, features.shape[:2])
            found = image_auc(features, owners, self._pairs, np.random.default_rng(number))
            if found is None:
                skipped[name] = "no two segments with two cells"
            else:
                scores.append(found)
        auc, near_auc = np.mean(scores, axis=0) if scores else (float("nan"), float("nan"))
        return DenseScore(float(auc), float(near_auc), len(scores), skipped)


def cells_of_segments(masks: Iterable[np.ndarray], grid: tuple[int, int]) -> np.ndarray:
    """Cells owned by each segment: those it covers by at least half.

    Args:
        masks: arrays (H, W), bool or uint8.
        grid: (rows, cols).

    Returns:
        (segments, rows * cols) bool.
    """
    rows, cols = grid
    shares = [cv2.resize(np.asarray(mask, np.float32), (cols, rows), interpolation=cv2.INTER_AREA) for mask in masks]
    return np.stack(shares).reshape(-1, rows * cols) >= COVERED if shares else np.zeros((0, rows * cols), bool)


def image_auc(
    features: np.ndarray, owners: np.ndarray, pairs: int, rng: np.random.Generator
) -> tuple[float, float] | None:
    """AUC and near AUC of one image; None unless a segment has two cells and other segments have cells outside it.

    Args:
        features: (rows, cols, C).
        owners: (segments, rows * cols) bool.
        pairs: number of pairs of each kind per segment.
        rng: generator for sampling the pairs.
    """
    rows, cols, dims = features.shape
    unit = features.reshape(-1, dims)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    y, x = np.divmod(np.arange(rows * cols), cols)
    somewhere = owners.any(axis=0)
    same, different, near = [], [], []
    for inside in owners:
        members, others = np.flatnonzero(inside), np.flatnonzero(somewhere & ~inside)
        if len(members) < 2 or len(others) == 0:
            continue
        a = rng.choice(members, pairs)
        b = members[(np.searchsorted(members, a) + rng.integers(1, len(members), pairs)) % len(members)]  # b != a
        c = rng.choice(others, (pairs, _CANDIDATES))
        wanted = np.hypot(y[a] - y[b], x[a] - x[b])
        distances = np.hypot(y[a][:, None] - y[c], x[a][:, None] - x[c])
        nearest = np.abs(distances - wanted[:, None]).argmin(axis=1)
        same.append((unit[a] * unit[b]).sum(axis=1))
        different.append((unit[a] * unit[c[:, 0]]).sum(axis=1))
        near.append((unit[a] * unit[c[np.arange(pairs), nearest]]).sum(axis=1))
    if not same:
        return None
    positive = np.concatenate(same)
    return pair_auc(positive, np.concatenate(different)), pair_auc(positive, np.concatenate(near))


def pair_auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a value of ``positive`` exceeds one of ``negative``; ties count half (Mann-Whitney U)."""
    ranks = rankdata(np.concatenate([positive, negative]))
    wins = ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))

"""Metrics of a predicted hierarchy, as opposed to its masks: ancestor pairs, parent links, depths, ancestor scores.

Notation, for one image and one IoU threshold t:
    true masks g with the relation  A* = {(i, j): i is a proper ancestor of j},  L* = {(i, j): i is the parent of j};
    predicted masks p with the relations A and L;
    a one-to-one matching m of predicted to true masks: the assignment with the largest sum of IoU among pairs with
    IoU >= t. It depends only on masks, not on scores or the hierarchy.
A predicted pair (p, q) is correct if both masks are matched and (m(p), m(q)) is a true pair.

    scope               precision = correct / ...                   recall = correct / ...
    end to end          all predicted pairs                         all true pairs
    matched             predicted pairs of two matched masks        true pairs of two matched masks

    F1 = 2 correct / (predicted + true pairs)

End to end, all pairs of a missed mask are missed; over matched masks only the hierarchy is scored. There, the parent of
a mask is its nearest matched ancestor, in the prediction and in the truth, because its own parent may be unmatched.

Pairs are summed over all images before dividing. Metrics without suffix are the mean over t = 0.50:0.05:0.95 (where
defined), with ``-50`` at t = 0.50. All are percentages, NaN if the denominator is 0.

The metrics are defined by this project: the SOHES paper shows hierarchies but does not score them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..structures.forest import NO_PARENT, Forest
from ..structures.masks import iou_matrix

IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())  # the same floats as in COCO's code
MEASURES = ("precision", "recall", "F1", "AP")
SCOPES = ("", "matched")
MAX_DEPTH = 3  # deeper masks are counted as this depth


@dataclass(frozen=True)
class AncestorScores:
    """Scored candidate pairs of one image's predicted masks.

    Attributes:
        ancestors, descendants: (K,) int indices of masks; each pair once.
        scores: (K,) float, any scale; higher: the first mask is more likely an ancestor of the second.
    """

    ancestors: np.ndarray
    descendants: np.ndarray
    scores: np.ndarray


def match_masks(ious: np.ndarray, threshold: float) -> np.ndarray:
    """One-to-one matching with the largest sum of IoU among the pairs that reach a threshold.

    Args:
        ious: (P, G), predicted by true masks.
        threshold: in (0, 1].

    Returns:
        (P,) int64 index of the true mask, -1 for none.
    """
    matches = np.full(ious.shape[0], -1, np.int64)
    allowed = np.where(ious >= threshold, ious, 0.0)
    # drop masks without candidates, which would only slow down the assignment
    rows, columns = np.flatnonzero(allowed.any(axis=1)), np.flatnonzero(allowed.any(axis=0))
    if len(rows):
        predicted, true = linear_sum_assignment(allowed[np.ix_(rows, columns)], maximize=True)
        predicted, true = rows[predicted], columns[true]
        kept = allowed[predicted, true] > 0
        matches[predicted[kept]] = true[kept]
    return matches


class ForestMetrics:
    """Accumulates images one by one; stores counts, and 8 bytes per scored pair, but no masks."""

    def __init__(self) -> None:
        # relation -> scope -> (thresholds, 3) numbers of correct, predicted and true pairs
        shape = (len(IOU_THRESHOLDS), 3)
        self._pairs = {r: {scope: np.zeros(shape, np.int64) for scope in SCOPES} for r in ("ancestor", "parent")}
        self._masks = np.zeros(shape, np.int64)
        self._same_depth = np.zeros(len(IOU_THRESHOLDS), np.int64)
        self._scores: list[np.ndarray] = []
        self._right: list[np.ndarray] = []  # one bit per threshold
        self._matched: list[np.ndarray] = []
        self.depth_confusion = np.zeros((MAX_DEPTH + 2, MAX_DEPTH + 2), np.int64)
        """(D + 2, D + 2) counts of masks at IoU 0.50, true depth by predicted depth; the last depth, D = MAX_DEPTH,
        includes deeper ones; the last column counts unmatched true masks, the last row unmatched predicted masks."""

    def add(self, truth: Forest, prediction: Forest, ancestor_scores: AncestorScores | None = None) -> None:
        """Add one image.

        Raises:
            ValueError: the parents of a forest form a cycle.
        """
        ious = iou_matrix(prediction.masks, truth.masks)
        true_ancestors, ancestors = truth.ancestors(), prediction.ancestors()
        true_links, links = _links(truth.parents), _links(prediction.parents)
        true_depths, depths = truth.depths(), prediction.depths()
        right_bits = matched_bits = 0
        for t, threshold in enumerate(IOU_THRESHOLDS):
            matches = match_masks(ious, threshold)
            found = np.flatnonzero(matches >= 0)
            partner = matches[found]
            both = ancestors[np.ix_(found, found)], true_ancestors[np.ix_(partner, partner)]
            right = int((both[0] & both[1]).sum())
            self._count("ancestor", "", t, right, ancestors.sum(), true_ancestors.sum())
            self._count("ancestor", "matched", t, right, both[0].sum(), both[1].sum())

            right = int((links[np.ix_(found, found)] & true_links[np.ix_(partner, partner)]).sum())
            self._count("parent", "", t, right, links.sum(), true_links.sum())
            both = _links(prediction.subset(found).parents), _links(truth.subset(partner).parents)
            self._count("parent", "matched", t, int((both[0] & both[1]).sum()), both[0].sum(), both[1].sum())

            self._masks[t] += (len(found), len(prediction), len(truth))
            self._same_depth[t] += int((depths[found] == true_depths[partner]).sum())
            if t == 0:
                self._count_depths(depths, true_depths, matches)
            if ancestor_scores is not None:
                a, d = matches[ancestor_scores.ancestors], matches[ancestor_scores.descendants]
                pair_matched = (a >= 0) & (d >= 0)
                pair_right = pair_matched & true_ancestors[a, d] if len(truth) else pair_matched
                right_bits = right_bits | (pair_right.astype(np.uint16) << np.uint16(t))
                matched_bits = matched_bits | (pair_matched.astype(np.uint16) << np.uint16(t))
        if ancestor_scores is not None:
            self._scores.append(np.asarray(ancestor_scores.scores, np.float32))
            self._right.append(np.asarray(right_bits))
            self._matched.append(np.asarray(matched_bits))

    def _count(self, relation: str, scope: str, t: int, right: int, predicted: int, true: int) -> None:
        self._pairs[relation][scope][t] += (right, int(predicted), int(true))

    def _count_depths(self, depths: np.ndarray, true_depths: np.ndarray, matches: np.ndarray) -> None:
        none = MAX_DEPTH + 1
        true = np.append(np.minimum(true_depths, MAX_DEPTH), none)
        # a match of -1 addresses the last entry: no true mask
        np.add.at(self.depth_confusion, (true[matches], np.minimum(depths, MAX_DEPTH)), 1)
        missed = np.setdiff1d(np.arange(len(true_depths)), matches)
        np.add.at(self.depth_confusion, (true[missed], none), 1)

    def compute(self) -> dict[str, float]:
        """The metrics of all images so far, in percent.

        Returns:
            ``{ancestor,parent}_{precision,recall,F1}`` and, if scores were given, ``ancestor_AP``, each also with
            ``-matched``, ``-50`` and ``-matched-50``; ``mask_recall`` (matched true masks) and ``depth_accuracy``
            (matched masks with correct depth), also with ``-50``.
        """
        by_threshold: dict[str, np.ndarray] = {}
        for scope in SCOPES:
            suffix = f"-{scope}" if scope else ""
            for relation, scopes in self._pairs.items():
                right, predicted, true = scopes[scope].T
                by_threshold[f"{relation}_precision{suffix}"] = _ratio(right, predicted)
                by_threshold[f"{relation}_recall{suffix}"] = _ratio(right, true)
                by_threshold[f"{relation}_F1{suffix}"] = _ratio(2 * right, predicted + true)
            if self._scores:
                by_threshold[f"ancestor_AP{suffix}"] = self._average_precisions(scope)
        by_threshold["mask_recall"] = _ratio(self._masks[:, 0], self._masks[:, 2])
        by_threshold["depth_accuracy"] = _ratio(self._same_depth, self._masks[:, 0])
        metrics = {}
        for name, values in by_threshold.items():
            defined = values[~np.isnan(values)]
            metrics[name] = 100 * float(defined.mean()) if len(defined) else float("nan")
            metrics[f"{name}-50"] = 100 * float(values[0])
        return metrics

    def _average_precisions(self, scope: str) -> np.ndarray:
        scores, right, matched = (np.concatenate(x) for x in (self._scores, self._right, self._matched))
        order = np.argsort(-scores, kind="stable")
        scores, right, matched = scores[order], right[order], matched[order]
        values = []
        for t in range(len(IOU_THRESHOLDS)):
            bit = np.uint16(1 << t)
            judged = (matched & bit) > 0 if scope else np.ones(len(scores), bool)
            true = int(self._pairs["ancestor"][scope][t, 2])
            values.append(average_precision(scores[judged], (right[judged] & bit) > 0, true))
        return np.array(values)


def average_precision(scores: np.ndarray, right: np.ndarray, total: int) -> float:
    """Area under the step-wise precision-recall curve: sum of (R(s) - R(previous s)) x P(s) over distinct scores s.

    P(s) and R(s) are the precision and recall of all pairs with at least that score, so the order of equal scores does
    not matter; no interpolation. True pairs that are not candidates count as missed.

    Args:
        scores: (K,) descending.
        right: (K,) bool, whether a pair is correct.
        total: number of true pairs.

    Returns:
        In [0, 1]; NaN if there are no true pairs.
    """
    if not total:
        return float("nan")
    if not len(scores):
        return 0.0
    last_of_score = np.append(scores[1:] != scores[:-1], True)
    hits = np.cumsum(right)[last_of_score]
    precision = hits / (np.flatnonzero(last_of_score) + 1)
    return float((np.diff(hits, prepend=0) / total * precision).sum())


def _links(parents: np.ndarray) -> np.ndarray:
    """(N, N) bool, ``[i, j]`` = i is the parent of j."""
    links = np.zeros((len(parents), len(parents)), bool)
    children = np.flatnonzero(parents != NO_PARENT)
    links[parents[children], children] = True
    return links


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)

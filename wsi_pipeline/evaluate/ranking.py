"""One class against the rest, ranked by its scores: areas under curves and points on them, all from one sort."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64

NAN = float("nan")
_ROUNDING = 1e-9  # of a specificity computed from counts


class Ranking(NamedTuple):
    """Each distinct score as a threshold, from the highest: a row whose score reaches it is called positive."""

    threshold: Float64  # (k,)
    hits: Float64  # (k,) positives among those called positive
    alarms: Float64  # (k,) negatives among those called positive

    @property
    def two_sided(self) -> bool:
        """Whether there are positives and negatives."""
        return len(self.hits) > 0 and self.hits[-1] > 0 and self.alarms[-1] > 0


def ranking(positive: Bool, score: Float64) -> Ranking:
    """Of n rows: whether positive (n,), and the score (n,)."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    last = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)[: len(falling)]  # of each distinct score
    hits = np.cumsum(positive[order])[last].astype(np.float64)
    return Ranking(falling[last], hits, last + 1.0 - hits)


def auroc(found: Ranking) -> float:
    """Share of the pairs of a positive and a negative that are in order, ties counting half; NaN without pairs."""
    if not found.two_sided:
        return NAN
    hits, alarms = np.append(0.0, found.hits), np.append(0.0, found.alarms)
    area = np.sum(np.diff(alarms) * (hits[1:] + hits[:-1]) / 2)
    return float(area / (hits[-1] * alarms[-1]))


def average_precision(found: Ranking) -> float:
    """Precision at each threshold, weighted by the positives that it adds (AUPRC); NaN where one side is missing."""
    if not found.two_sided:
        return NAN
    precision = found.hits / (found.hits + found.alarms)
    return float(np.sum(np.diff(found.hits, prepend=0.0) * precision) / found.hits[-1])


def sensitivity_at(found: Ranking, specificity: float) -> float:
    """The highest sensitivity of a threshold whose specificity is not below ``specificity`` (0..1).

    One of the thresholds at hand, none between them. The threshold is chosen on the rows it is measured on, so this
    describes the ranking, not a decision.
    """
    if not found.two_sided:
        return NAN
    allowed = found.alarms <= (1 - specificity + _ROUNDING) * found.alarms[-1]
    return float(found.hits[allowed].max(initial=0.0) / found.hits[-1])

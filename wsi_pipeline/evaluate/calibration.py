"""Do probabilities mean what they say, and do they know when they are wrong? Calibration and selective prediction.

Reliability and its error: Guo et al., ICML 2017. Brier, Monthly Weather Review 1950. Risk and coverage: Geifman and
El-Yaniv, NeurIPS 2017; the area under their curve: Geifman et al., ICLR 2019. Prediction sets: Vovk et al., 2005.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64, Int64


class Reliability(NamedTuple):
    """The bins that hold something, from the lowest confidence."""

    held: Int64  # (b,) how many
    confidence: Float64  # (b,) mean in the bin
    hit_rate: Float64  # (b,)


def reliability(confidence: Float64, hit: Bool, bins: int) -> Reliability:
    """Confidences (n,) in 0..1 and whether each was right (n,), in ``bins`` equal bins (i/bins, (i+1)/bins]."""
    place = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    count = np.bincount(place, minlength=bins)
    held = count > 0
    mean = np.bincount(place, confidence, bins)[held] / count[held]
    return Reliability(count[held], mean, np.bincount(place, hit, bins)[held] / count[held])


def calibration_error(found: Reliability) -> float:
    """Expected calibration error: mean gap between confidence and hit rate, each bin weighing what it holds."""
    return float(np.average(np.abs(found.confidence - found.hit_rate), weights=found.held))


def top_label(truth: Int64, probabilities: Float64) -> tuple[Float64, Bool]:
    """Probability (n,) of the likeliest of C classes (n, C), and whether it is the true one (n,)."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == truth


def brier(target: Float64, probabilities: Float64) -> float:
    """Squared distance from what is true (n, C), 1 or 0, summed over the classes: 0..2."""
    return float(np.mean(np.sum((probabilities - target) ** 2, axis=1)))


def risk_coverage(confidence: Float64, hit: Bool) -> tuple[Float64, Float64]:
    """Answer only the k most confident of n rows, k = 1..n: the share answered (n,), and how many of those are wrong.

    Equally confident rows come in no order: of a group that is answered in part, each row counts as wrong as its group.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)  # (n,)
    wrong = np.bincount(group, ~hit[order]) / np.bincount(group)  # share of each group
    answered = np.arange(1, len(hit) + 1)
    return answered / len(hit), np.cumsum(wrong[group]) / answered


def risk_coverage_area(confidence: Float64, hit: Bool) -> float:
    """Mean risk over all coverages (AURC); the lower, the better the confidence tells right from wrong."""
    return float(risk_coverage(confidence, hit)[1].mean())


def set_metrics(sets: Bool, truth: Int64, predicted: Int64) -> dict[str, float]:
    """Prediction sets (n, C) against the true class (n,): how often they hold it, their mean size, and what is sure.

    A set of other than one class is an abstention; where none is left, their accuracy is NaN. ``predicted`` (n,): the
    class that is named where the set holds just one.
    """
    sure = sets.sum(axis=1) == 1
    right = predicted == truth
    return {
        "coverage": float(sets[np.arange(len(truth)), truth].mean()),
        "set_size": float(sets.sum(axis=1).mean()),
        "abstained": float(1 - sure.mean()),
        "accuracy_not_abstained": float(right[sure].mean()) if sure.any() else float("nan"),
    }

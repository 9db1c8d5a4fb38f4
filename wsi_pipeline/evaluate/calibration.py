"""Calibration of probabilities, and selective prediction: does confidence separate correct from wrong predictions?

Reliability and its error: Guo et al., ICML 2017. Brier, Monthly Weather Review 1950. Risk and coverage: Geifman and
El-Yaniv, NeurIPS 2017; the area under their curve: Geifman et al., ICLR 2019. Prediction sets: Vovk et al., 2005.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64, Int64


class Reliability(NamedTuple):
    """The bins of a reliability diagram that are not empty, from the lowest confidence."""

    counts: Int64  # (b,) rows of each bin
    confidence: Float64  # (b,) mean of the bin
    accuracy: Float64  # (b,) fraction correct


def reliability(confidence: Float64, correct: Bool, bins: int) -> Reliability:
    """Confidence and accuracy in bins of equal width.

    Parameters
    ----------
    confidence : array (n,), from 0 to 1
    correct : bool array (n,)
    bins : int
        Bin i is (i / bins, (i + 1) / bins]; the first also contains 0.
    """
    index = np.searchsorted(np.arange(1, bins) / bins, confidence, side="left")
    count = np.bincount(index, minlength=bins)
    filled = count > 0
    mean = np.bincount(index, confidence, bins)[filled] / count[filled]
    return Reliability(count[filled], mean, np.bincount(index, correct, bins)[filled] / count[filled])


def calibration_error(found: Reliability) -> float:
    """Expected calibration error: mean absolute gap between confidence and accuracy, bins weighted by their count."""
    return float(np.average(np.abs(found.confidence - found.accuracy), weights=found.counts))


def top_label(truth: Int64, probabilities: Float64) -> tuple[Float64, Bool]:
    """Probability (n,) of the most probable class, and whether it is the true one (n,), from probabilities (n, C)."""
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == truth


def brier(target: Float64, probabilities: Float64) -> float:
    """Brier score: squared distance of probabilities (n, C) from the target (n, C), 1 or 0, summed over classes: 0..2.

    >>> brier(np.array([[0.0, 1.0]]), np.array([[0.5, 0.5]]))
    0.5
    """
    return float(np.mean(np.sum((probabilities - target) ** 2, axis=1)))


def risk_coverage(confidence: Float64, correct: Bool) -> tuple[Float64, Float64]:
    """The risk-coverage curve: errors among the k most confident of n predictions, k = 1..n.

    Parameters
    ----------
    confidence : array (n,)
    correct : bool array (n,)

    Returns
    -------
    coverage : array (n,)
        Fraction of rows that are predicted, k / n.
    risk : array (n,)
        Fraction of errors among these. Equally confident rows have no order: in a group that is included in part,
        each row counts with the error rate of its group.
    """
    order = np.argsort(-confidence, kind="stable")
    _, group = np.unique(-confidence[order], return_inverse=True)  # (n,)
    error_rate = np.bincount(group, ~correct[order]) / np.bincount(group)  # of each group
    included = np.arange(1, len(correct) + 1)
    return included / len(correct), np.cumsum(error_rate[group]) / included


def risk_coverage_area(confidence: Float64, correct: Bool) -> float:
    """Mean risk over all coverages (AURC): low where confidence separates correct from wrong predictions."""
    return float(risk_coverage(confidence, correct)[1].mean())


def set_metrics(sets: Bool, truth: Int64, predicted: Int64) -> dict[str, float]:
    """Coverage and size of prediction sets, and accuracy with abstention.

    Parameters
    ----------
    sets : bool array (n, C)
        Classes in each prediction set. A set that does not contain exactly one class is an abstention.
    truth : array (n,)
        Index of the true class.
    predicted : array (n,)
        Index of the class that is predicted without abstention.

    Returns
    -------
    dict
        ``coverage``, ``set_size``, ``abstained`` and ``accuracy_not_abstained``; the last is NaN where all abstain.
    """
    certain = sets.sum(axis=1) == 1
    correct = predicted == truth
    return {
        "coverage": float(sets[np.arange(len(truth)), truth].mean()),
        "set_size": float(sets.sum(axis=1).mean()),
        "abstained": float(1 - certain.mean()),
        "accuracy_not_abstained": float(correct[certain].mean()) if certain.any() else float("nan"),
    }

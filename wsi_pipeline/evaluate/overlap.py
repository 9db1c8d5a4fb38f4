"""Overlap of a map with an annotation: the protocol of segmentation by relevance, with patches in place of pixels.

Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021: the map, scaled to
0..1, is thresholded at its own mean; accuracy and IoU are from counts over all slides, AP and F1 are means over slides.
Also the pointing game (Zhang et al., ECCV 2016) and relevance mass (Arras, Osman and Samek, Information Fusion 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64, Int64
from .ranking import auroc, average_precision, ranking

THRESHOLDS = np.arange(101) / 100  # of a scaled map, at which Dice is computed


class Overlap(NamedTuple):
    """Agreement of one map with one annotation; every tissue patch has the same weight."""

    counts: Int64  # (4,) true positives, false positives, false negatives and true negatives at the map's mean
    ap: float  # average precision of both channels: the scaled map and one minus it
    f1: float  # of the foreground
    auprc: float  # of the foreground; like auroc, NaN where every patch is positive
    auroc: float
    pointing: float  # 1 where the highest score (of equal ones the first) is inside; else 0
    mass: float  # fraction of the positive scores' sum that is inside; NaN where no score is positive
    dice: Float64  # (101,) at each of ``THRESHOLDS``


def overlap(scores: np.ndarray, positive: Bool) -> Overlap:
    """Compare a map with an annotation.

    Parameters
    ----------
    scores : array (N,)
        One per patch.
    positive : bool array (N,)
        Annotated patches, at least one.

    Returns
    -------
    Overlap
    """
    scaled = unit_scaled(scores)
    counts = table_of(scaled > scaled.mean(), positive)
    true_positives, false_positives, false_negatives, _ = counts.tolist()
    foreground = ranking(positive, scaled)
    evidence = np.maximum(np.asarray(scores, np.float64), 0)
    return Overlap(
        counts=counts,
        ap=average_precision(ranking(np.append(~positive, positive), np.append(1 - scaled, scaled))),
        f1=2 * true_positives / (2 * true_positives + false_positives + false_negatives),
        auprc=average_precision(foreground),
        auroc=auroc(foreground),
        pointing=float(positive[np.argmax(scores)]),
        mass=float(evidence[positive].sum() / evidence.sum()) if evidence.any() else float("nan"),
        dice=dice(scaled, positive),
    )


def unit_scaled(scores: np.ndarray) -> Float64:
    """Scores (N,) scaled to 0..1, from the lowest to the highest; a constant map becomes 0 everywhere."""
    scores = np.asarray(scores, np.float64)
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))


def table_of(called: Bool, positive: Bool) -> Int64:
    """True positives, false positives, false negatives and true negatives (4,), of boolean arrays (N,)."""
    pairs = (called & positive, called & ~positive, ~called & positive, ~called & ~positive)
    return np.array([np.count_nonzero(pair) for pair in pairs], np.int64)


def pixel_accuracy(counts: Int64) -> float:
    """Fraction of patches classified correctly, from ``counts`` (4,) summed over slides; NaN without patches."""
    return float((counts[0] + counts[3]) / counts.sum()) if counts.any() else float("nan")


def mean_iou(counts: Int64) -> float:
    """Mean of foreground and background intersection over union, from ``counts`` (4,) summed over slides.

    A class that is neither present nor predicted is not used; NaN without patches.
    """
    true_positives, false_positives, false_negatives, true_negatives = counts.tolist()
    wrong = false_positives + false_negatives
    defined = [part / (part + wrong) for part in (true_positives, true_negatives) if part + wrong]
    return float(np.mean(defined)) if defined else float("nan")


def dice(scaled: Float64, positive: Bool) -> Float64:
    """Dice coefficients (101,) of the patches that reach each of ``THRESHOLDS`` and the positive ones (N,)."""
    rising = np.sort(scaled)
    hits = np.count_nonzero(positive) - np.searchsorted(np.sort(scaled[positive]), THRESHOLDS, side="left")
    called = len(rising) - np.searchsorted(rising, THRESHOLDS, side="left")
    return 2 * hits / (called + np.count_nonzero(positive))


def dice_of_others(curves: Float64, patients: Sequence[str]) -> Float64:
    """Each slide's Dice at the threshold with the best mean Dice on the slides of the other patients.

    Parameters
    ----------
    curves : array (S, 101)
        From ``dice``, one row per slide.
    patients : S strings

    Returns
    -------
    array (S,)
        Of equally good thresholds the lowest is used; NaN where there is no other patient.
    """
    of_row = np.asarray(patients)
    found = np.full(len(curves), np.nan)
    for i in range(len(curves)):
        others = curves[of_row != of_row[i]]
        if len(others):
            found[i] = curves[i, others.mean(axis=0).argmax()]
    return found

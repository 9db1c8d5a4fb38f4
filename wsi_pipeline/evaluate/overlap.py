"""Does a map segment what was outlined? The protocol of image segmentation by relevance, with patches for pixels.

Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021: the map, scaled to
0..1, is cut at its own mean; accuracy and IoU come from counts over all slides, AP and F1 are means over slides. Beside
it the pointing game (Zhang et al., ECCV 2016) and relevance mass (Arras, Osman and Samek, Information Fusion 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64, Int64
from .ranking import auroc, average_precision, ranking

THRESHOLDS = np.arange(101) / 100  # of a scaled map, at which Dice is kept


class Overlap(NamedTuple):
    """One map against one annotation, every tissue patch weighing the same."""

    counts: Int64  # (4,) hits, false alarms, misses and the rest, cut at the map's mean
    ap: float  # of both channels, the map and what it leaves over
    f1: float  # of the foreground
    auprc: float  # of the foreground; like auroc, NaN where every patch is positive
    auroc: float
    pointing: float  # 1 where the highest score, the first of equals, is inside; else 0
    mass: float  # share of what speaks for the class that lies inside; NaN where nothing does
    dice: Float64  # (101,) of the patches that reach each of ``THRESHOLDS``


def overlap(scores: np.ndarray, positive: Bool) -> Overlap:
    """``scores`` (N,) against the ``positive`` patches (N,), of which there is at least one."""
    scaled = unit_scaled(scores)
    counts = table_of(scaled > scaled.mean(), positive)
    hits, alarms, misses, _ = counts.tolist()
    foreground = ranking(positive, scaled)
    pulls_for = np.maximum(np.asarray(scores, np.float64), 0)
    return Overlap(
        counts=counts,
        ap=average_precision(ranking(np.append(~positive, positive), np.append(1 - scaled, scaled))),
        f1=2 * hits / (2 * hits + alarms + misses),
        auprc=average_precision(foreground),
        auroc=auroc(foreground),
        pointing=float(positive[np.argmax(scores)]),
        mass=float(pulls_for[positive].sum() / pulls_for.sum()) if pulls_for.any() else float("nan"),
        dice=dice(scaled, positive),
    )


def unit_scaled(scores: np.ndarray) -> Float64:
    """Scores (N,) on 0..1, lowest to highest; a constant map is 0 everywhere."""
    scores = np.asarray(scores, np.float64)
    low, high = scores.min(), scores.max()
    return (scores - low) / (high - low) if high > low else np.zeros(len(scores))


def table_of(called: Bool, positive: Bool) -> Int64:
    """Hits, false alarms, misses and the rest, (4,)."""
    pairs = (called & positive, called & ~positive, ~called & positive, ~called & ~positive)
    return np.array([np.count_nonzero(pair) for pair in pairs], np.int64)


def pixel_accuracy(counts: Int64) -> float:
    """Share of patches called rightly, of ``counts`` (4,) summed over slides; NaN of no patch."""
    return float((counts[0] + counts[3]) / counts.sum()) if counts.any() else float("nan")


def mean_iou(counts: Int64) -> float:
    """Mean over foreground and background of intersection over union, of ``counts`` (4,) summed over slides.

    A class that is neither there nor called does not count; NaN of no patch.
    """
    hits, alarms, misses, rest = counts.tolist()
    known = [part / (part + alarms + misses) for part in (hits, rest) if part + alarms + misses]
    return float(np.mean(known)) if known else float("nan")


def dice(scaled: Float64, positive: Bool) -> Float64:
    """Dice (101,) of the patches that reach each of ``THRESHOLDS`` with the positive ones: 2 hits / (both areas)."""
    falling = np.sort(scaled)
    hits = np.count_nonzero(positive) - np.searchsorted(np.sort(scaled[positive]), THRESHOLDS, side="left")
    called = len(falling) - np.searchsorted(falling, THRESHOLDS, side="left")
    return 2 * hits / (called + np.count_nonzero(positive))


def dice_of_others(curves: Float64, patients: Sequence[str]) -> Float64:
    """Each slide's Dice (S,) at the threshold that is best, on average, on the other patients' slides.

    ``curves`` (S, 101) from ``dice``; of equal thresholds the lowest. No slide chooses its own threshold; NaN where
    there is no other patient.
    """
    whose = np.asarray(patients)
    found = np.full(len(curves), np.nan)
    for i in range(len(curves)):
        others = curves[whose != whose[i]]
        if len(others):
            found[i] = curves[i, others.mean(axis=0).argmax()]
    return found

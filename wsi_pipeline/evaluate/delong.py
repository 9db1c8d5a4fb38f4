"""Variance of the area under the ROC curve, and of the difference of two areas on the same rows, without resampling.

DeLong, DeLong and Clarke-Pearson, Biometrics 1988; structural components from midranks in O(n log n) as in Sun and Xu,
IEEE Signal Processing Letters 2014. Rows of one patient are not independent: their components are summed before they
are squared (Obuchowski, Biometrics 1997), which equals DeLong's variance where every patient has one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..types import Bool, Float64

NAN = float("nan")
_Z = 1.959963984540054  # 95 % of a normal distribution lie within this many standard deviations


class Areas(NamedTuple):
    """K areas under ROC curves on the same rows."""

    value: Float64  # (K,)
    covariance: Float64  # (K, K); NaN where positives or negatives come from fewer than two patients


class Difference(NamedTuple):
    """Second area minus first, its 95 % interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float


def areas(positive: Bool, scores: Float64, patients: Sequence[str]) -> Areas:
    """AUROC of K scores on the same rows, with their covariance.

    Parameters
    ----------
    positive : bool array (n,)
        There must be both positives and negatives.
    scores : array (K, n)
    patients : n strings
        The patient of each row.

    Returns
    -------
    Areas
    """
    from scipy.stats import rankdata

    m, n = int(positive.sum()), int((~positive).sum())
    ranks = rankdata(scores, axis=1)  # (K, m + n) midranks
    above = (ranks[:, positive] - rankdata(scores[:, positive], axis=1)) / n  # (K, m) negatives below each positive
    below = 1 - (ranks[:, ~positive] - rankdata(scores[:, ~positive], axis=1)) / m  # (K, n) positives above a negative
    value = above.mean(axis=1)
    names, patient_index = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    of_positives = _sums(above - value[:, None], patient_index[positive], len(names))  # (K, patients)
    of_negatives = _sums(below - value[:, None], patient_index[~positive], len(names))
    clusters = [len(np.unique(patient_index[side])) for side in (positive, ~positive)]  # patients of either kind
    if min(clusters) < 2:
        return Areas(value, np.full((len(value), len(value)), NAN))
    mixed = of_positives @ of_negatives.T * len(names) / (len(names) - 1)  # of patients with both kinds; else 0
    covariance = (
        of_positives @ of_positives.T * clusters[0] / (clusters[0] - 1) / m**2
        + of_negatives @ of_negatives.T * clusters[1] / (clusters[1] - 1) / n**2
        + (mixed + mixed.T) / (m * n)
    )
    return Areas(value, covariance)


def interval(found: Areas) -> tuple[float, float]:
    """95 % interval of the first area, clipped to 0..1; NaN where its variance is unknown or 0, as for an area of 1."""
    variance = float(found.covariance[0, 0])
    if not variance > 0:
        return NAN, NAN
    half = _Z * math.sqrt(variance)
    value = float(found.value[0])
    return max(value - half, 0.0), min(value + half, 1.0)


def difference(found: Areas) -> Difference:
    """The second of two areas minus the first, with interval and p-value, NaN where the variance is unknown or 0.

    Two scores with the same ranking have neither variance nor difference: interval (0, 0), p = 1.
    """
    value = float(found.value[1] - found.value[0])
    covariance = found.covariance
    variance = float(covariance[0, 0] + covariance[1, 1] - covariance[0, 1] - covariance[1, 0])
    scale = float(covariance[0, 0] + covariance[1, 1])
    if not variance > 1e-12 * scale:  # below that it is rounding error
        same = value == 0 and not math.isnan(variance)
        return Difference(value, *((0.0, 0.0, 1.0) if same else (NAN, NAN, NAN)))
    deviation = math.sqrt(variance)
    p = math.erfc(abs(value) / deviation / math.sqrt(2))
    return Difference(value, value - _Z * deviation, value + _Z * deviation, p)


def _sums(values: Float64, patient_index: np.ndarray, patients: int) -> Float64:
    """(K, r) summed over the rows of each patient -> (K, patients)."""
    sums: Float64 = np.stack([np.bincount(patient_index, row, patients) for row in values])
    return sums

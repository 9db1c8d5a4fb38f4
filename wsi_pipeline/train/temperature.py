"""One number that makes a classifier's probabilities less sure, or more, without changing which class it names."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from ..types import Float64, Int64

LOWEST, HIGHEST = 0.01, 100.0


def fit_temperature(logits: Float64, truth: Int64 | Float64) -> float:
    """T > 0 that minimises the mean negative log-likelihood of logits / T on n bags, logits (n, C).

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. ``truth`` (n,): class indices, softmax;
    (n, C): a 0 or 1 for each class, one sigmoid a class. The likelihood is convex in 1 / T, so the answer is the one
    place where its slope is 0, or the end of 0.01..100 next to it: 100 for logits that are worse than chance.

    1.0, which changes nothing, where the bags say nothing of T: none, one class only, logits that are no finite
    numbers, or no bag on the wrong side. Of a perfect separation the likelihood grows without end as T goes to 0; a
    handful of bags that happen to be right is no reason to be sure.
    """
    z, answers = np.asarray(logits, np.float64), np.asarray(truth)
    if len(np.unique(answers)) < 2 or not np.isfinite(z).all():
        return 1.0
    if answers.ndim == 2:
        separated = bool((z * (2 * answers - 1) >= 0).all())
        true = float((z * answers).sum())
    else:
        z = z - z.max(axis=1, keepdims=True)
        true = float(z[np.arange(len(z)), answers.astype(np.int64)].sum())
        separated = true == 0
    if separated:
        return 1.0

    def slope(log_t: float) -> float:
        """Of the summed likelihood's negative logarithm, by 1 / T: what is expected of z minus what is true of it."""
        scaled = z * math.exp(-log_t)
        expected = softmax(scaled, axis=1) if answers.ndim == 1 else expit(scaled)
        return float((z * expected).sum()) - true

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(low) <= 0:
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    return math.exp(float(brentq(slope, low, high, xtol=1e-12)))

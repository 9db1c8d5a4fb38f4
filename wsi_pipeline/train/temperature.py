"""Temperature scaling: one number that calibrates a classifier's probabilities without changing its predicted class."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, softmax

from ..types import Float64, Int64

LOWEST, HIGHEST = 0.01, 100.0


def fit_temperature(logits: Float64, truth: Int64 | Float64) -> float:
    """The temperature T > 0 that minimises the mean negative log-likelihood of logits / T.

    Parameters
    ----------
    logits : array (n, C)
    truth : array (n,) or (n, C)
        (n,): class indices, for a softmax; (n, C): 0 or 1 for each class, for one sigmoid per class.

    Returns
    -------
    float
        From 0.01 to 100. 1.0, which changes nothing, where the bags do not determine T: no bag, one class only, a
        logit that is not finite, or no misclassified bag.

    Notes
    -----
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017. The negative log-likelihood is convex in 1 / T,
    so the minimum is where its slope is 0, or the nearer end of the range: 100 for logits that are worse than chance.
    Under perfect separation the likelihood increases without bound as T approaches 0, but a handful of correct bags
    does not justify certainty.
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
        """Derivative of the summed negative log-likelihood by 1 / T: expected minus observed logits."""
        scaled = z * math.exp(-log_t)
        expected = softmax(scaled, axis=1) if answers.ndim == 1 else expit(scaled)
        return float((z * expected).sum()) - true

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(low) <= 0:
        return LOWEST
    if slope(high) >= 0:
        return HIGHEST
    return math.exp(float(brentq(slope, low, high, xtol=1e-12)))

"""Harrell's concordance index, used by validation during training and by evaluation."""

from __future__ import annotations

import math

import numpy as np

from .types import Bool, Float64, Int64


def concordance(time: Float64, event: Bool, risk: Float64, ensemble: Int64 | None = None) -> float:
    """Compute Harrell's concordance index: the fraction of comparable pairs in the right order.

    A pair is comparable if the one with the earlier time had the event; at equal times, if one had the event and the
    other was censored, who is taken to survive longer. The order is right if the earlier event has the higher risk;
    equal risks count half.

    Parameters
    ----------
    time : ndarray of float64, (n,)
        Follow-up times.
    event : ndarray of bool, (n,)
        Whether the event was observed; False means censored.
    risk : ndarray of float64, (n,)
        Predicted risks; a higher risk predicts an earlier event.
    ensemble : ndarray of int64, (n,), optional
        Which ensemble predicted the risk. A risk has no natural zero, so risks of two ensembles are not compared.

    Returns
    -------
    float
        From 0 to 1; NaN if no pair is comparable.

    References
    ----------
    Harrell et al., Evaluating the yield of medical tests, JAMA 1982.

    Examples
    --------
    >>> float(concordance(np.array([1.0, 2.0, 3.0]), np.array([True, True, False]), np.array([3.0, 2.0, 1.0])))
    1.0
    """
    before = (time[event, None] < time) | ((time[event, None] == time) & ~event)  # (events, n) the row's event is first
    if ensemble is not None:
        before &= ensemble[event, None] == ensemble
    pairs = np.count_nonzero(before)
    higher = np.count_nonzero(before & (risk[event, None] > risk))
    equal = np.count_nonzero(before & (risk[event, None] == risk))
    return (higher + equal / 2) / pairs if pairs else math.nan

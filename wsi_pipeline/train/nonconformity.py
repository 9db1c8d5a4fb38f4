"""Nonconformity scores: stored at calibration and compared when a prediction set is formed."""

from __future__ import annotations

import numpy as np

from ..types import Float64

DIGITS = 6  # stored in the model's card; new scores are rounded the same way, so that ties stay ties


def nonconformity(probabilities: Float64) -> Float64:
    """1 - p of every class, rounded to six decimals: (..., C) -> (..., C). Calibration stores that of the true class.

    Rounding after the subtraction changes no order but creates ties, which can only widen a prediction set: a confident
    model's scores of 1e-8 and 3e-8 are equal, in its card and for every later slide.

    >>> nonconformity(np.array([0.25, 0.75])).tolist()
    [0.75, 0.25]
    """
    return np.round(1.0 - probabilities, DIGITS)

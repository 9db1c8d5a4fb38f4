"""How ill a class fits a slide: the score that calibration keeps and prediction sets are cut from."""

from __future__ import annotations

import numpy as np

from ..types import Float64

DIGITS = 6  # kept in the model's card; new scores are rounded alike, so that ties stay ties


def nonconformity(probabilities: Float64) -> Float64:
    """1 - p of every class, (..., C) -> (..., C), to six decimals. Calibration keeps that of the true class.

    Rounding after 1 - p changes no order but makes ties, which only widen a prediction set. A confident model's
    scores of 1e-8 and 3e-8 are one score, in its card and in every later slide.
    """
    return np.round(1.0 - probabilities, DIGITS)

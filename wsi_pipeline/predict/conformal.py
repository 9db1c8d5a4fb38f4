"""Prediction sets: the classes that cannot be ruled out at a stated risk of error.

Split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; several folds:
Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..train.nonconformity import nonconformity
from ..types import Bool, Float64


def prediction_set(probabilities: Float64, calibrations: Sequence[Sequence[float]], alpha: float) -> Bool:
    """Which classes (C,) the set holds: those whose p-value is above ``alpha``, 0 < alpha < 1.

    ``probabilities`` (M, C), or (C,) of one member; ``calibrations``: for each member the ``nonconformity`` of the
    true class on slides that it was not trained on. The p-value of class c is
    (1 + sum_m #{s of member m: s >= score_m(c)}) / (1 + sum_m n_m).

    One member: a new slide's class is in the set with probability 1 - alpha or more, over slides and calibration
    alike. Folds of one cross-validation: Vovk's own guarantee is only 1 - 2 alpha, though about 1 - alpha is seen.
    Both hold where calibration slides and the new one are exchangeable; the caller sees to that, with one slide a
    patient in calibration. Fewer than 1 / alpha - 1 calibration slides rule nothing out: the set holds all classes.
    A set may be empty: no class fits.
    """
    of_members = np.atleast_2d(probabilities)
    as_ill = np.zeros(of_members.shape[1], np.int64)  # calibration slides that fit no better than c, (C,)
    for scores, calibration in zip(nonconformity(of_members), calibrations, strict=True):
        ranked = np.sort(np.asarray(calibration, np.float64))
        as_ill += len(ranked) - np.searchsorted(ranked, scores, side="left")
    p_values = (1 + as_ill) / (1 + sum(len(calibration) for calibration in calibrations))
    return np.asarray(p_values > alpha)

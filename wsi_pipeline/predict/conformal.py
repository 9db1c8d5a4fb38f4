"""Prediction sets: the classes that cannot be excluded at a stated risk of error.

Split conformal prediction: Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005; several folds:
Vovk, "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 2015.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..train.nonconformity import nonconformity
from ..types import Bool, Float64


def prediction_set(probabilities: Float64, calibrations: Sequence[Sequence[float]], alpha: float) -> Bool:
    """The classes whose p-value is above ``alpha``.

    The p-value of class c is (1 + sum_m #{s of member m: s >= score_m(c)}) / (1 + sum_m n_m).

    Parameters
    ----------
    probabilities : array (M, C), or (C,) of one member
    calibrations : M sequences of floats
        For each member the ``nonconformity`` of the true class on slides that it was not trained on.
    alpha : float
        Accepted risk of error, 0 < alpha < 1.

    Returns
    -------
    bool array (C,)
        Whether each class is in the set. The set may be empty: then no class conforms. It contains all classes
        where there are fewer than 1 / alpha - 1 calibration slides.

    Notes
    -----
    With one member, the class of a new slide is in the set with probability 1 - alpha or more, over the draw of both
    slides and calibration. For the folds of one cross-validation, Vovk's guarantee is only 1 - 2 alpha, although
    about 1 - alpha is observed. Both require that the calibration slides and the new one are exchangeable; the caller
    ensures that by one slide per patient in calibration.

    >>> prediction_set(np.array([0.95, 0.05]), [[0.1] * 9], alpha=0.1).tolist()
    [True, False]
    """
    of_members = np.atleast_2d(probabilities)
    no_better = np.zeros(of_members.shape[1], np.int64)  # (C,) calibration slides that conform no better than class c
    for scores, calibration in zip(nonconformity(of_members), calibrations, strict=True):
        ranked = np.sort(np.asarray(calibration, np.float64))
        no_better += len(ranked) - np.searchsorted(ranked, scores, side="left")
    p_values = (1 + no_better) / (1 + sum(len(calibration) for calibration in calibrations))
    return np.asarray(p_values > alpha)

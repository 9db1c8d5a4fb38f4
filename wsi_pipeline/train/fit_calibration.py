"""Calibration of a model on its validation bags: a temperature and nonconformity scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..outcome import outcome
from ..types import Float64
from .labels import Target
from .nonconformity import nonconformity
from .temperature import fit_temperature


class Calibration(NamedTuple):
    """The calibration stored in the model's card."""

    temperature: float | None  # None: the task has no probabilities (regression, survival)
    nonconformity: tuple[float, ...]  # 1 - calibrated probability of the true class, ascending; classification only


def calibrate(task: str, logits: Float64, targets: Sequence[Target], patients: Sequence[str]) -> Calibration:
    """Calibrate a model on its n validation bags.

    Parameters
    ----------
    task : str
        Only ``classification`` and ``multilabel`` have a temperature, only ``classification`` nonconformity scores.
    logits : array (n, C)
    targets : n targets, see ``labels``
    patients : n patient_ids
        Only the first bag of each patient contributes a nonconformity score, since several bags of one patient are
        not exchangeable with those of new patients.

    Returns
    -------
    Calibration

    Notes
    -----
    The validation bags also selected the epoch, so both results are slightly optimistic. Temperature: Guo et al.,
    ICML 2017. Conformal prediction: Vovk, Gammerman and Shafer 2005.
    """
    if task not in ("classification", "multilabel"):
        return Calibration(None, ())
    truth = np.asarray(targets, np.float64)  # (n, K)
    if task == "multilabel":
        return Calibration(fit_temperature(logits, truth), ())
    labels = truth[:, 0].astype(np.int64)
    temperature = fit_temperature(logits, labels)
    first = sorted({patient: i for i, patient in reversed(list(enumerate(patients)))}.values())
    probabilities = outcome(task, logits[first], temperature=temperature)
    scores = nonconformity(probabilities)[np.arange(len(first)), labels[first]]
    return Calibration(temperature, tuple(sorted(scores.tolist())))

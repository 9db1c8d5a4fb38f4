"""What validation says of a model's certainty: a temperature, and how far it was from right."""

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
    """What goes into the model's card."""

    temperature: float | None  # None: the task has no probabilities
    nonconformity: tuple[float, ...]  # 1 - calibrated probability of the true class, ascending; classification only


def calibrate(task: str, logits: Float64, targets: Sequence[Target], patients: Sequence[str]) -> Calibration:
    """From validation bags: logits (n, C), what they teach, and whose they are.

    One bag a patient (the first) counts for the nonconformity, since bags of one patient are not exchangeable with
    those of new ones. Guo et al., ICML 2017 (temperature); Vovk, Gammerman and Shafer 2005 (conformal prediction).
    Validation has also chosen the epoch, so both are slightly too hopeful.
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

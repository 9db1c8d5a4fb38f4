"""The measures of each task on the labelled, held-out rows of one model, with their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..concordance import concordance
from ..config import EvaluateConfig
from ..types import Bool, Int64
from .bootstrap import Interval, intervals
from .delong import areas, interval
from .metrics import (
    certainty_metrics,
    classification_metrics,
    decide,
    multilabel_metrics,
    positive_classes,
    regression_metrics,
)
from .predictions import Scored

Statistic = Callable[[Int64], dict[str, float]]


class Measure(NamedTuple):
    """A measure with its bootstrap interval over patients and, for the AUROC of one class, DeLong's interval."""

    interval: Interval
    delong: tuple[float, float] | None = None  # NaN where it is undefined


def statistic(model: Scored, section: EvaluateConfig) -> Statistic:
    """A function from row indices of ``model`` to its measures, always the same names in the same order."""
    if model.task == "multilabel":
        return lambda rows: multilabel_metrics(
            model.truth[rows], model.outcome[rows], model.calibrated[rows], model.classes, section.bins
        )
    if model.task == "regression":
        return lambda rows: regression_metrics(model.truth[rows], model.outcome[rows, 0])
    if model.task == "survival":
        time, event = model.truth[:, 0], model.truth[:, 1] == 1
        _, ensemble = np.unique(model.weights, return_inverse=True)
        return lambda rows: {
            "concordance": concordance(time[rows], event[rows], model.outcome[rows, 0], ensemble[rows])
        }
    predicted = decide(model.outcome, model.threshold)

    def classification(rows: Int64) -> dict[str, float]:
        truth, outcome, called = model.truth[rows], model.outcome[rows], predicted[rows]
        return classification_metrics(truth, outcome, called, model.classes, section.specificity) | certainty_metrics(
            truth, outcome, model.calibrated[rows], model.sets[rows], called, section.bins
        )

    return classification


def measures(model: Scored, section: EvaluateConfig) -> dict[str, Measure]:
    """All measures of the model's task by name, with intervals."""
    found = intervals(statistic(model, section), model.patients, section.bootstrap, section.seed)
    delong = {
        name: interval(areas(positive, model.outcome[None, :, c], model.patients))
        for name, c, positive in one_against_rest(model)
    }
    return {name: Measure(value, delong.get(name)) for name, value in found.items()}


def one_against_rest(model: Scored) -> list[tuple[str, int, Bool]]:
    """Each defined AUROC of a single class: its name, the index of the class, and which rows (n,) are positive."""
    if model.task == "classification":
        classes = positive_classes(len(model.classes))
        found = [(c, model.truth == c) for c in classes]
    elif model.task == "multilabel":
        found = [(c, model.truth[:, c]) for c in range(len(model.classes))]
    else:
        return []
    binary = model.task == "classification" and len(model.classes) == 2
    return [
        ("auroc" if binary else f"auroc[{model.classes[c]}]", c, positive)
        for c, positive in found
        if 0 < np.count_nonzero(positive) < len(positive)
    ]

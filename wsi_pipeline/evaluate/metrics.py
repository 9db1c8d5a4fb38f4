"""Measures of predictions, one function per task. A measure that is undefined without some class is NaN.

For two classes AUROC, AUPRC, F1 and sensitivity are those of the positive (last) class; for more, the mean over the
classes, each against the rest (macro); for multilabel, the mean over the labels. ``auroc[x]`` is that of class x alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Bool, Float64, Int64
from .calibration import brier, calibration_error, reliability, risk_coverage_area, set_metrics, top_label
from .ranking import NAN, auroc, average_precision, ranking, sensitivity_at

EVEN_ODDS = 0.5  # the threshold where validation determined none, and for every multilabel class


def positive_classes(classes: int) -> range:
    """Indices of the classes that are measured against the rest: of two, the last; of more, all."""
    return range(1, 2) if classes == 2 else range(classes)


def decide(probabilities: Float64, threshold: Float64) -> Int64:
    """Predicted class of each row.

    Parameters
    ----------
    probabilities : array (n, C)
    threshold : array (n,)
        On the probability of the last of two classes; NaN means 0.5. For more classes it is not used.

    Returns
    -------
    int array (n,)
        Index of the last of two classes where its probability reaches the threshold; of more, the most probable.
    """
    if probabilities.shape[1] != 2:
        most_probable: Int64 = probabilities.argmax(axis=1)
        return most_probable
    reached = probabilities[:, 1] >= np.where(np.isnan(threshold), EVEN_ODDS, threshold)
    return reached.astype(np.int64)


def classification_metrics(
    truth: Int64, probabilities: Float64, predicted: Int64, classes: Sequence[str], specificity: Sequence[float] = ()
) -> dict[str, float]:
    """Discrimination between classes.

    Parameters
    ----------
    truth : int array (n,)
        Index of the true class.
    probabilities : array (n, C)
    predicted : int array (n,)
        Index of the predicted class.
    classes : C strings
    specificity : sequence of float
        Specificities at which sensitivity is measured.

    Returns
    -------
    dict of str to float
        All but accuracy are NaN unless every class is present. For more than two classes it includes each one's AUROC.
    """
    count = len(classes)
    confusion = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)  # true, predicted
    hits, of_class, called = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    positives = positive_classes(count)
    ranked = [ranking(truth == c, probabilities[:, c]) for c in positives]
    complete = bool(of_class.all())
    areas = [auroc(r) for r in ranked]
    found = {
        "auroc": float(np.mean(areas)),
        "auprc": float(np.mean([average_precision(r) for r in ranked])),
        "balanced_accuracy": float(np.mean(hits / of_class)) if complete else NAN,
        "f1": float(np.mean([2 * hits[c] / (of_class[c] + called[c]) for c in positives])) if complete else NAN,
        "accuracy": float(hits.sum() / of_class.sum()),
    }
    for wanted in specificity:
        found[sensitivity_name(wanted)] = float(np.mean([sensitivity_at(r, wanted) for r in ranked]))
    return found | (_of_classes("auroc", classes, areas) if count > 2 else {})


def certainty_metrics(
    truth: Int64, probabilities: Float64, calibrated: Float64, sets: Bool, predicted: Int64, bins: int
) -> dict[str, float]:
    """Calibration, selective prediction and prediction sets of a classifier.

    Parameters
    ----------
    truth : int array (n,)
        Index of the true class.
    probabilities, calibrated : array (n, C)
        Before and after temperature scaling; names of measures on the latter end in ``_calibrated``.
    sets : bool array (n, C)
        Prediction sets.
    predicted : int array (n,)
        Index of the predicted class.
    bins : int
        Bins of the calibration error.

    Returns
    -------
    dict of str to float
        Expected calibration error and area under the risk-coverage curve are those of the most probable class.
    """
    target = np.eye(probabilities.shape[1])[truth]  # (n, C)
    ece, scores, areas = {}, {}, {}
    for ending, given in (("", probabilities), ("_calibrated", calibrated)):
        confidence, correct = top_label(truth, given)
        ece[f"ece{ending}"] = calibration_error(reliability(confidence, correct, bins))
        scores[f"brier{ending}"] = brier(target, given)
        areas[f"aurc{ending}"] = risk_coverage_area(confidence, correct)
    return ece | scores | areas | set_metrics(sets, truth, predicted)


def multilabel_metrics(
    truth: Bool, probabilities: Float64, calibrated: Float64, classes: Sequence[str], bins: int
) -> dict[str, float]:
    """Measures of multilabel predictions.

    Parameters
    ----------
    truth : bool array (n, C)
        Whether each label is present.
    probabilities, calibrated : array (n, C)
        Before and after temperature scaling.
    classes : C strings
    bins : int
        Bins of the calibration error.

    Returns
    -------
    dict of str to float
        Means over the labels, then those of each label. F1 is at threshold 0.5, NaN for a label that is neither present
        nor predicted. Calibration error and Brier score (per label, 0..1) pool all slides and labels.
    """
    ranked = [ranking(truth[:, c], probabilities[:, c]) for c in range(len(classes))]
    predicted = probabilities >= EVEN_ODDS
    hits, sizes = (truth & predicted).sum(axis=0), truth.sum(axis=0) + predicted.sum(axis=0)
    per_class = {
        "auroc": [auroc(r) for r in ranked],
        "auprc": [average_precision(r) for r in ranked],
        "f1": [2 * float(a) / float(n) if n else NAN for a, n in zip(hits, sizes, strict=True)],
    }
    found = {name: float(np.mean(values)) for name, values in per_class.items()}
    for ending, given in (("", probabilities), ("_calibrated", calibrated)):
        found[f"ece{ending}"] = calibration_error(reliability(given.ravel(), truth.ravel(), bins))
        found[f"brier{ending}"] = float(np.mean((given - truth) ** 2))
    for name, values in per_class.items():
        found |= _of_classes(name, classes, values)
    return found


def regression_metrics(truth: Float64, value: Float64) -> dict[str, float]:
    """Measures of regression, from true and predicted values (n,) in the label's unit.

    R² is NaN where all true values are equal, correlations also where all predicted values are.
    """
    from scipy.stats import rankdata

    error = value - truth
    spread = float(np.sum((truth - truth.mean()) ** 2))
    return {
        "mae": float(np.mean(np.abs(error))),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "r2": 1 - float(np.sum(error**2)) / spread if np.ptp(truth) > 0 else NAN,
        "pearson": correlation(truth, value),
        "spearman": correlation(rankdata(truth), rankdata(value)),
    }


def correlation(first: Float64, second: Float64) -> float:
    """Pearson's correlation of two arrays (n,); NaN where either is constant."""
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return NAN
    a, b = first - first.mean(), second - second.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def sensitivity_name(specificity: float) -> str:
    """Name of the measure "sensitivity at this specificity".

    >>> sensitivity_name(0.95)
    'sensitivity_at_0.95'
    """
    return f"sensitivity_at_{specificity:g}"


def _of_classes(name: str, classes: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {f"{name}[{c}]": value for c, value in zip(classes, values, strict=True)}

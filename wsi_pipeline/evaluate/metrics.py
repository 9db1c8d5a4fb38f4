"""Measures of predictions, one function a task. What a class's absence leaves undefined is NaN, never a default.

For two classes AUROC, AUPRC, F1 and sensitivity are those of the positive (last) class; for more, the mean over the
classes, each against the rest (macro); of multilabel, the mean over the classes. ``auroc[x]`` is that of class x alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..types import Bool, Float64, Int64
from .calibration import brier, calibration_error, reliability, risk_coverage_area, set_metrics, top_label
from .ranking import NAN, auroc, average_precision, ranking, sensitivity_at

EVEN_ODDS = 0.5  # the threshold where validation gave none, and of every multilabel class


def positive_classes(classes: int) -> range:
    """The classes that are looked at against the rest."""
    return range(1, 2) if classes == 2 else range(classes)


def decide(probabilities: Float64, threshold: Float64) -> Int64:
    """Predicted class (n,) from (n, C): of two, the last where its probability reaches ``threshold`` (n,).

    A threshold that is NaN counts as 0.5. More classes: the most probable.
    """
    if probabilities.shape[1] != 2:
        likeliest: Int64 = probabilities.argmax(axis=1)
        return likeliest
    reached = probabilities[:, 1] >= np.where(np.isnan(threshold), EVEN_ODDS, threshold)
    return reached.astype(np.int64)


def classification_metrics(
    truth: Int64, probabilities: Float64, predicted: Int64, classes: Sequence[str], specificity: Sequence[float] = ()
) -> dict[str, float]:
    """How well n slides are told apart: true class (n,), probabilities (n, C), predicted class (n,).

    All but accuracy are NaN unless every class is there; of more than two classes, each one's AUROC follows.
    """
    count = len(classes)
    confusion = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)  # true, said
    hits, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    positives = positive_classes(count)
    ranked = [ranking(truth == c, probabilities[:, c]) for c in positives]
    complete = bool(true.all())
    areas = [auroc(r) for r in ranked]
    found = {
        "auroc": float(np.mean(areas)),
        "auprc": float(np.mean([average_precision(r) for r in ranked])),
        "balanced_accuracy": float(np.mean(hits / true)) if complete else NAN,
        "f1": float(np.mean([2 * hits[c] / (true[c] + said[c]) for c in positives])) if complete else NAN,
        "accuracy": float(hits.sum() / true.sum()),
    }
    for wanted in specificity:
        found[sensitivity_name(wanted)] = float(np.mean([sensitivity_at(r, wanted) for r in ranked]))
    return found | (_of_classes("auroc", classes, areas) if count > 2 else {})


def certainty_metrics(
    truth: Int64, probabilities: Float64, calibrated: Float64, sets: Bool, predicted: Int64, bins: int
) -> dict[str, float]:
    """How far probabilities can be believed, as they came and after temperature (``_calibrated``), both (n, C).

    ``sets`` (n, C): the prediction sets. Calibration error and area under risk and coverage are of the likeliest class.
    """
    target = np.eye(probabilities.shape[1])[truth]  # (n, C)
    ece, scores, areas = {}, {}, {}
    for ending, given in (("", probabilities), ("_calibrated", calibrated)):
        confidence, hit = top_label(truth, given)
        ece[f"ece{ending}"] = calibration_error(reliability(confidence, hit, bins))
        scores[f"brier{ending}"] = brier(target, given)
        areas[f"aurc{ending}"] = risk_coverage_area(confidence, hit)
    return ece | scores | areas | set_metrics(sets, truth, predicted)


def multilabel_metrics(
    truth: Bool, probabilities: Float64, calibrated: Float64, classes: Sequence[str], bins: int
) -> dict[str, float]:
    """Each of C classes present or not (n, C), and its probability (n, C): macro means, then each class's own.

    F1 is that at 0.5, NaN for a class that is neither there nor named. Calibration error and Brier score (per class,
    0..1) take every slide and class as one statement.
    """
    ranked = [ranking(truth[:, c], probabilities[:, c]) for c in range(len(classes))]
    said = probabilities >= EVEN_ODDS
    agreed, named = (truth & said).sum(axis=0), truth.sum(axis=0) + said.sum(axis=0)
    per_class = {
        "auroc": [auroc(r) for r in ranked],
        "auprc": [average_precision(r) for r in ranked],
        "f1": [2 * float(a) / float(n) if n else NAN for a, n in zip(agreed, named, strict=True)],
    }
    found = {name: float(np.mean(values)) for name, values in per_class.items()}
    for ending, given in (("", probabilities), ("_calibrated", calibrated)):
        found[f"ece{ending}"] = calibration_error(reliability(given.ravel(), truth.ravel(), bins))
        found[f"brier{ending}"] = float(np.mean((given - truth) ** 2))
    for name, values in per_class.items():
        found |= _of_classes(name, classes, values)
    return found


def regression_metrics(truth: Float64, value: Float64) -> dict[str, float]:
    """True and predicted values (n,), in the label's unit.

    R² is NaN where all true values are equal, correlations also where all predicted ones are.
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
    """Pearson's, of (n,) and (n,); NaN where either does not vary."""
    if not (np.ptp(first) > 0 and np.ptp(second) > 0):
        return NAN
    a, b = first - first.mean(), second - second.mean()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1, 1))


def sensitivity_name(specificity: float) -> str:
    """Name of the sensitivity at this specificity."""
    return f"sensitivity_at_{specificity:g}"


def _of_classes(name: str, classes: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    return {f"{name}[{c}]": value for c, value in zip(classes, values, strict=True)}

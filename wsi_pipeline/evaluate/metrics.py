"""Measures of slide predictions. What a class's absence leaves undefined is NaN, never a default.

For two classes AUROC, AUPRC and F1 are those of the positive (last) class; for more, the mean over the classes, each
against the rest (macro).
"""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

from ..types import Float64, Int64

METRICS = ("auroc", "auprc", "balanced_accuracy", "f1", "accuracy")
EVEN_ODDS = 0.5  # the threshold where validation gave none


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


def slide_metrics(truth: Int64, probabilities: Float64, predicted: Int64) -> dict[str, float]:
    """``METRICS`` of n slides: true class (n,), probabilities (n, C), predicted class (n,).

    All but accuracy are NaN unless every class is there.
    """
    classes = probabilities.shape[1]
    confusion = np.bincount(truth * classes + predicted, minlength=classes**2).reshape(classes, classes)  # true, said
    hits, true, said = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    accuracy = {"accuracy": float(hits.sum() / true.sum())}
    if classes < 2 or not true.all():
        return dict.fromkeys(METRICS, float("nan")) | accuracy
    positives = positive_classes(classes)
    ranked = [(truth == c, probabilities[:, c]) for c in positives]
    return {
        "auroc": float(np.mean([roc_auc_score(is_class, score) for is_class, score in ranked])),
        "auprc": float(np.mean([average_precision_score(is_class, score) for is_class, score in ranked])),
        "balanced_accuracy": float(np.mean(hits / true)),
        "f1": float(np.mean([2 * hits[c] / (true[c] + said[c]) for c in positives])),
        **accuracy,
    }

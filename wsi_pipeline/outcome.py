"""From logits to reported outcomes: probabilities, a value in the label's unit, or a risk. Without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax

from .types import Float64


def outcome(
    task: str, logits: Float64, *, temperature: float = 1.0, scale: tuple[float, float] = (0.0, 1.0)
) -> Float64:
    """Convert logits to outcomes.

    Parameters
    ----------
    task : {"classification", "multilabel", "regression", "survival"}
        Classification: softmax; multilabel: sigmoid; regression: ``scale[0] + scale[1] * logits``; survival: the logit
        itself, which is the log hazard.
    logits : ndarray of float64, (..., C)
        The model's outputs.
    temperature : float
        Divides the logits of the two classification tasks.
    scale : (float, float)
        Regression: mean and standard deviation of the training labels.

    Returns
    -------
    ndarray of float64, (..., C)
        Probabilities, values in the label's unit, or risks.

    Examples
    --------
    >>> outcome("regression", np.array([0.5]), scale=(10.0, 4.0))
    array([12.])
    """
    if task == "survival":
        return logits
    if task == "regression":
        return np.asarray(scale[0] + scale[1] * logits, np.float64)
    squashed = expit(logits / temperature) if task == "multilabel" else softmax(logits / temperature, axis=-1)
    return np.asarray(squashed, np.float64)


def outcome_columns(task: str, classes: Sequence[str]) -> list[str]:
    """Column names of the outcomes: ``prob_<class>``, or the task's own ``value`` or ``risk``.

    Examples
    --------
    >>> outcome_columns("classification", ["normal", "tumor"])
    ['prob_normal', 'prob_tumor']
    """
    return [f"prob_{name}" for name in classes] if task in ("classification", "multilabel") else list(classes)

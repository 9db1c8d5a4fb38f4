"""From logits to what is written: probabilities, a value in the label's unit, or a risk. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit, softmax

from .types import Float64


def outcome(
    task: str, logits: Float64, *, temperature: float = 1.0, scale: tuple[float, float] = (0.0, 1.0)
) -> Float64:
    """Of logits (..., C): softmax, of multilabel sigmoid, both after division by ``temperature``; else value or risk.

    ``scale``: a regression's mean and standard deviation in training. Survival's risk is the logit itself.
    """
    if task == "survival":
        return logits
    if task == "regression":
        return np.asarray(scale[0] + scale[1] * logits, np.float64)
    squashed = expit(logits / temperature) if task == "multilabel" else softmax(logits / temperature, axis=-1)
    return np.asarray(squashed, np.float64)


def outcome_columns(task: str, classes: Sequence[str]) -> list[str]:
    """Column names of ``outcome``: prob_<class>, or value or risk."""
    return [f"prob_{name}" for name in classes] if task in ("classification", "multilabel") else list(classes)

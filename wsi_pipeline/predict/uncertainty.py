"""How unsure an ensemble is, and how much of that is disagreement between its members."""

from __future__ import annotations

import numpy as np

from ..types import Float64


def entropies(members: Float64, *, multilabel: bool = False) -> tuple[float, float, float]:
    """Total, aleatoric and epistemic uncertainty in nats, from the members' probabilities (M, C), M >= 1.

    Total is the entropy of the mean, aleatoric the mean of the entropies, epistemic their difference: the mutual
    information of the class and the member, 0 where all agree (Depeweg et al., ICML 2018; Lakshminarayanan et al.,
    NeurIPS 2017, for the ensemble). ``multilabel``: each class is a Bernoulli of its own, and their entropies add up.
    """
    total = float(_entropy(_mean(members), multilabel))
    aleatoric = float(_mean(_entropy(members, multilabel)))
    return total, aleatoric, max(total - aleatoric, 0.0)  # entropy is concave: below 0 is rounding


def _entropy(probabilities: Float64, multilabel: bool) -> Float64:
    """(..., C) -> (...)."""
    summed: Float64 = _surprise(probabilities).sum(axis=-1)
    return summed + _surprise(1 - probabilities).sum(axis=-1) if multilabel else summed


def _surprise(p: Float64) -> Float64:
    """-p log p, 0 at 0."""
    return 0.0 - p * np.log(np.where(p > 0, p, 1.0))


def _mean(values: Float64) -> Float64:
    """Over the first axis; equal values have exactly their value as mean, so agreement is exactly 0."""
    mean: Float64 = values[0] + (values - values[0]).mean(axis=0)
    return mean

"""Predictive uncertainty of an ensemble, and the part of it that is disagreement between its members."""

from __future__ import annotations

import numpy as np

from ..types import Float64


def entropies(members: Float64, *, multilabel: bool = False) -> tuple[float, float, float]:
    """Total, aleatoric and epistemic uncertainty in nats.

    Parameters
    ----------
    members : array (M, C)
        Probabilities of the members, M >= 1.
    multilabel : bool
        Each class is a Bernoulli variable of its own, and their entropies are summed.

    Returns
    -------
    total, aleatoric, epistemic : float
        Entropy of the mean; mean of the entropies; their difference, which is the mutual information of class and
        member and 0 where all members agree.

    Notes
    -----
    Depeweg et al., ICML 2018; for ensembles Lakshminarayanan et al., NeurIPS 2017.
    """
    total = float(_entropy(_mean(members), multilabel))
    aleatoric = float(_mean(_entropy(members, multilabel)))
    return total, aleatoric, max(total - aleatoric, 0.0)  # entropy is concave: a negative difference is rounding


def _entropy(probabilities: Float64, multilabel: bool) -> Float64:
    """Entropy in nats, (..., C) -> (...)."""
    summed: Float64 = _entropy_terms(probabilities).sum(axis=-1)
    return summed + _entropy_terms(1 - probabilities).sum(axis=-1) if multilabel else summed


def _entropy_terms(p: Float64) -> Float64:
    """-p log p, 0 at 0."""
    return 0.0 - p * np.log(np.where(p > 0, p, 1.0))


def _mean(values: Float64) -> Float64:
    """Mean over the first axis; the mean of equal values is exactly that value, so full agreement gives exactly 0."""
    mean: Float64 = values[0] + (values - values[0]).mean(axis=0)
    return mean

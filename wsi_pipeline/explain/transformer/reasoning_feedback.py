"""Reasoning feedback: the gradient of the last attention map, integrated from no evidence to the whole bag.

Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023: the integral of the
gradient while the features are scaled from zero to their values. Both of the paper's methods are weighted by it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from .trace import last_gradient, trace


def reasoning_feedback(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """mean_h relu(mean over α = 1/steps … 1 of dt/dA) for the bags α x, t the target (see ``explained_model``).

    The mean over α is inside the relu and that over heads outside, as in the authors' code.

    Parameters
    ----------
    model : TransMIL
        Frozen.
    features : Tensor, (N, D)
    xy : Tensor, (N, 2)
        Positions in units of the patch stride.
    target : Target
    steps : int
        Number of scaled bags.

    Returns
    -------
    Tensor, (P,)
        The class token's row in the last layer.
    """

    def gradient(alpha: float) -> Tensor:
        traced = trace(model, alpha * features, xy)
        return traced.last.times_values(last_gradient(model, traced, target))  # (H, P)

    total = functools.reduce(torch.add, (gradient(step / steps) for step in range(1, steps + 1)))
    return (total / steps).relu_().mean(0)

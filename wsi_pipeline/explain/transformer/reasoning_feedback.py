"""What the class feeds back to the last attention layer, from no evidence to the whole bag.

Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023: the integral, along the
features' way up from zero, of the gradient of the last attention map. Both of the paper's methods weigh by it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from .trace import last_gradient, trace


def reasoning_feedback(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """mean_h relu(mean over α = 1/steps … 1 of dt/dA), for the bag α x: the class token's row (P,) in the last layer.

    The mean over α stands inside relu and that over heads outside, as in the authors' code.
    """

    def gradient(alpha: float) -> Tensor:
        seen = trace(model, alpha * features, xy)
        return seen.last.times_values(last_gradient(model, seen, target))  # (H, P)

    total = functools.reduce(torch.add, (gradient(step / steps) for step in range(1, steps + 1)))
    return (total / steps).relu_().mean(0)

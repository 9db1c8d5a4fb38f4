"""Squared gradient: saliency that counts a patch's steepest features most."""

from __future__ import annotations

from torch import Tensor

from ..propagation.gradients import GradientSize
from . import Explainer, explainers


def sum_of_squares(slopes: Tensor) -> Tensor:
    """Sum over d of (dt/dx_kd)^2, (N, D) -> (N,), t the contrast: one forward and one backward pass.

    The sensitivity of Zurada, Malinowski and Cloete, "Sensitivity analysis for minimization of input data dimension
    for feedforward neural network", ISCAS 1994, as Samek et al., "Evaluating the visualization of what a deep neural
    network has learned", IEEE TNNLS 2017, compare it with others.
    """
    return slopes.square().sum(1)


@explainers.register("squared_gradient", paper="Zurada et al., ISCAS 1994")
def squared_gradient() -> Explainer:
    """Squared length of the gradient: how much the answer moves with a patch, whichever way."""
    return GradientSize(sum_of_squares)

"""Squared gradient: saliency in which a patch's steepest features have the largest weight."""

from __future__ import annotations

from torch import Tensor

from ..propagation.gradients import GradientMagnitude
from . import Explainer, explainers


def sum_of_squares(gradient: Tensor) -> Tensor:
    """Sum over d of (dt/dx_kd)^2, (N, D) -> (N,): one forward and one backward pass.

    Unsigned ("attribution", in squared units of t); t is the target of the task, see ``explained_model``. The
    sensitivity of Zurada, Malinowski and Cloete, "Sensitivity analysis for minimization of input data dimension for
    feedforward neural network", ISCAS 1994, in the form that Samek et al., "Evaluating the visualization of what a deep
    neural network has learned", IEEE TNNLS 2017, compare with other methods.
    """
    return gradient.square().sum(1)


@explainers.register("squared_gradient", paper="Zurada et al., ISCAS 1994")
def squared_gradient() -> Explainer:
    """Squared length of the target's gradient: how strongly it reacts to a patch, in either direction."""
    return GradientMagnitude(sum_of_squares)

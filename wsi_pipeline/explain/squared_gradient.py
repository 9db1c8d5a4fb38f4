"""Squared gradient: saliency that counts a patch's steepest features most."""

from __future__ import annotations

from torch import Tensor, nn

from ..types import Float32, Unit
from . import Explainer, explainers
from .gradients import gradient


class SquaredGradient:
    """Sum over d of (dt/dx_kd)^2, t the contrast: one forward and one backward pass.

    The sensitivity of Zurada, Malinowski and Cloete, "Sensitivity analysis for minimization of input data dimension
    for feedforward neural network", ISCAS 1994, as Samek et al., "Evaluating the visualization of what a deep neural
    network has learned", IEEE TNNLS 2017, compare it with others. Unsigned, as ``saliency`` is.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        slopes = gradient(model, features, xy, target)  # (N, D)
        scores: Float32 = slopes.square().sum(1).float().cpu().numpy()  # (N,)
        return scores


@explainers.register(
    "squared_gradient", paper="Zurada et al., ISCAS 1994", unit="attribution", signed=False, class_specific=True
)
def squared_gradient() -> Explainer:
    """Squared length of the gradient: how much the answer moves with a patch, whichever way."""
    return SquaredGradient()

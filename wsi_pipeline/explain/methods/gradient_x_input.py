"""Gradient times input: what each patch's features add to the decision, to first order."""

from __future__ import annotations

from torch import Tensor, nn

from ...types import Float32, Unit
from ..gradients import gradient
from . import Explainer, explainers


class GradientTimesInput:
    """Sum over d of x_kd dt/dx_kd, t the contrast: one forward and one backward pass.

    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
    arXiv 1605.01713, 2016. Exact where the model is homogeneous in its features, else a linear estimate: where a
    little more of a patch would change nothing, as when its attention is saturated, clear evidence scores low.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        slopes = gradient(model, features, xy, target)  # (N, D)
        scores: Float32 = (features * slopes).sum(1).float().cpu().numpy()  # (N,)
        return scores


@explainers.register(
    "gradient_x_input", paper="Shrikumar et al., 2016", unit="attribution", signed=True, class_specific=True
)
def gradient_x_input() -> Explainer:
    """Features times the gradient of the class against the rest; for every model that has gradients."""
    return GradientTimesInput()

"""Gradient times input: what each patch's features add to the decision, to first order."""

from __future__ import annotations

from torch import Tensor

from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..propagation.gradients import gradient
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

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        slopes = gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution((features * slopes).sum(1))  # (N,)


@explainers.register("gradient_x_input", paper="Shrikumar et al., 2016")
def gradient_x_input() -> Explainer:
    """Features times the gradient of the class against the rest; for every model that has gradients."""
    return GradientTimesInput()

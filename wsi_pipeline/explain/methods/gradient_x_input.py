"""Gradient times input: the contribution of each patch's features to the target, to first order."""

from __future__ import annotations

from torch import Tensor

from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..propagation.gradients import gradient
from . import Explainer, explainers


class GradientTimesInput:
    """Sum over d of x_kd dt/dx_kd: one forward and one backward pass.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. Shrikumar et al., "Not
    Just a Black Box: Learning Important Features Through Propagating Activation Differences", arXiv 1605.01713, 2016.
    Exact where the model is homogeneous in its features, else a linear estimate: where a small change of a patch has no
    effect, as with saturated attention, clear evidence scores low.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        slope = gradient(explained.module, features, xy, explained.target(target))  # (N, D)
        return Attribution((features * slope).sum(1))  # (N,)


@explainers.register("gradient_x_input", paper="Shrikumar et al., 2016")
def gradient_x_input() -> Explainer:
    """Features times the target's gradient; for every model that has gradients."""
    return GradientTimesInput()

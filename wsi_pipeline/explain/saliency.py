"""Saliency: how much the decision moves with each patch's features, whichever way."""

from __future__ import annotations

from torch import Tensor, nn

from ..types import Float32, Unit
from . import Explainer, explainers
from .gradients import gradient


class Saliency:
    """Sum over d of |dt/dx_kd|, t the contrast: one forward and one backward pass.

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models and
    Saliency Maps", ICLR workshop 2014. They take the largest of a pixel's three channels; the channels of a patch are
    some thousand features of no rank, so here they are added up. Says how sensitive the answer is to a patch, not
    what the patch says: evidence for and against look alike.
    """

    unit: Unit = "attribution"
    signed = False
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:  # noqa: ARG002
        return None

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        slopes = gradient(model, features, xy, target)  # (N, D)
        scores: Float32 = slopes.abs().sum(1).float().cpu().numpy()  # (N,)
        return scores


@explainers.register(
    "saliency", paper="Simonyan et al., ICLR workshop 2014", unit="attribution", signed=False, class_specific=True
)
def saliency() -> Explainer:
    """Size of the gradient: how much the answer moves with a patch, whichever way."""
    return Saliency()

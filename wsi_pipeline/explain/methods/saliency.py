"""Saliency: how much the decision moves with each patch's features, whichever way."""

from __future__ import annotations

from torch import Tensor

from ..propagation.gradients import GradientSize
from . import Explainer, explainers


def sum_of_sizes(slopes: Tensor) -> Tensor:
    """Sum over d of |dt/dx_kd|, (N, D) -> (N,), t the contrast: one forward and one backward pass.

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks: Visualising Image Classification Models and
    Saliency Maps", ICLR workshop 2014. They take the largest of a pixel's three channels; the channels of a patch are
    some thousand features of no rank, so here they are added up.
    """
    return slopes.abs().sum(1)


@explainers.register("saliency", paper="Simonyan et al., ICLR workshop 2014")
def saliency() -> Explainer:
    """Size of the gradient: how much the answer moves with a patch, whichever way."""
    return GradientSize(sum_of_sizes)

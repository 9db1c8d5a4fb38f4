"""Saliency: how strongly the target reacts to each patch's features, in either direction."""

from __future__ import annotations

from torch import Tensor

from ..propagation.gradients import GradientMagnitude
from . import Explainer, explainers


def sum_of_magnitudes(gradient: Tensor) -> Tensor:
    """Sum over d of |dt/dx_kd|, (N, D) -> (N,): one forward and one backward pass.

    Unsigned ("attribution"); t is the target of the task, see ``explained_model``. Simonyan, Vedaldi and Zisserman,
    "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps", ICLR workshop 2014.
    Deviation: they take the largest of a pixel's three channels; a patch has about a thousand features, so here they
    are summed.
    """
    return gradient.abs().sum(1)


@explainers.register("saliency", paper="Simonyan et al., ICLR workshop 2014")
def saliency() -> Explainer:
    """Magnitude of the target's gradient: how strongly it reacts to a patch, in either direction."""
    return GradientMagnitude(sum_of_magnitudes)

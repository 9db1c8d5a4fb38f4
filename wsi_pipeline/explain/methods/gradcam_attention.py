"""Grad-CAM on attention: the last layer's heads, weighted by what they do for the class."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.token_explainer import TokenExplainer
from ..transformer.trace import last_gradient, trace
from . import Explainer, explainers


def weighted_heads(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """relu(mean_h w_h A_h) of the class token's row (P,) in the last layer, w_h the mean gradient over the patches.

    Selvaraju et al., "Grad-CAM", ICCV 2017, on attention as Chefer et al., CVPR 2021, have it among their baselines: a
    head is a channel, the patches (copies included) are its picture. Nothing is stretched to [0, 1], so that no
    evidence is zero everywhere and not a division by zero.
    """
    seen = trace(model, features, xy)
    gradient = seen.last.times_values(last_gradient(model, seen, target))  # dt/dA (H, P)
    weights = gradient[:, seen.last.padding + 1 :].mean(1)  # (H,)
    return (weights[:, None] * seen.last.class_row).mean(0).relu()


@explainers.register("gradcam_attention", paper="Selvaraju et al., ICCV 2017")
def gradcam_attention() -> Explainer:
    """The last layer's attention, each head weighted by its mean gradient for the class; what is below zero is cut."""
    return TokenExplainer(weighted_heads, unit="attribution", class_specific=True)

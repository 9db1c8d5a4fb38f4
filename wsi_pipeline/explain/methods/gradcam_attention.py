"""Grad-CAM on attention: the last layer's heads, weighted by the target's gradient."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.token_explainer import TokenExplainer
from ..transformer.trace import last_gradient, trace
from . import Explainer, explainers


def gradcam_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """relu(mean_h w_h A_h) of the class token's row (P,) in the last layer, w_h the mean of dt/dA_h over the patches.

    Unsigned ("attribution"); t is the target of the task, see ``explained_model``. Selvaraju et al., "Grad-CAM", ICCV
    2017, on attention, as Chefer et al., CVPR 2021, use it as a baseline: a head is a channel, the patches (copies
    included) are its pixels. Scores are not rescaled to [0, 1], so that no evidence gives zeros instead of a division
    by zero.
    """
    traced = trace(model, features, xy)
    gradient = traced.last.times_values(last_gradient(model, traced, target))  # dt/dA (H, P)
    weights = gradient[:, traced.last.padding + 1 :].mean(1)  # (H,)
    return (weights[:, None] * traced.last.class_row).mean(0).relu()


@explainers.register("gradcam_attention", paper="Selvaraju et al., ICCV 2017")
def gradcam_attention() -> Explainer:
    """The last layer's attention, heads weighted by their mean gradient, negative values set to 0; for transmil."""
    return TokenExplainer(gradcam_row, unit="attribution", class_specific=True)

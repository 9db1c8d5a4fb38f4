"""Instance head: what the model's own classifier of patches says of each."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...aggregate import InstanceLogits
from ...types import Float32, Unit
from ..frozen import frozen
from . import Explainer, explainers


class InstanceHead:
    """Probability of the class by the model's instance classifier, in the slide's context.

    DTFD: Zhang et al., CVPR 2022, L_k^c = K a_k w_c · h_k of the first tier, p_k = softmax_c(L_k). CLAM: the class's
    instance classifier (Lu et al., 2021), in or not. DSMIL: softmax of the instance stream (Li et al., 2021).
    ``instance`` asks the bag's classifier instead, of a bag of one. An additive model's own numbers are no
    probabilities: they are its ``contribution``.
    """

    unit: Unit = "probability"
    signed = False
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:
        if isinstance(model, InstanceLogits):
            return None
        return "has no classifier of patches; this method needs a model with instance_logits(), as dtfd has"

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        with frozen(model), torch.no_grad():
            logits = cast(InstanceLogits, model).instance_logits(features, xy)
        scores: Float32 = probabilities(logits)[:, target].float().cpu().numpy()  # (N,)
        return scores


def probabilities(logits: Tensor) -> Tensor:
    """(N, C) of (N, C), softmax over the classes, one logit alone sigmoid; or of (N, C, 2), of the second of each."""
    if logits.ndim == 3:
        return logits.softmax(2)[..., 1]
    return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)


@explainers.register(
    "instance_head", paper="Zhang et al., CVPR 2022", unit="probability", signed=False, class_specific=True
)
def instance_head() -> Explainer:
    """Each patch's probability by the model's own classifier of patches; for dtfd, clam and dsmil."""
    return InstanceHead()

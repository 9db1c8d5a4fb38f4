"""Contribution: what each patch adds to the decision, exactly."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...aggregate import Additive
from ...types import Float32, Unit
from ..frozen import frozen
from ..logit_contrast import contrast
from . import Explainer, explainers


class Contribution:
    """c_k = a_k w · h_k of an additive model, of the contrast: the scores and the bias' contrast add up to it.

    The decomposition of attention-based MIL that Javed et al., "Additive MIL: Intrinsically Interpretable Multiple
    Instance Learning for Pathology", NeurIPS 2022, build their model on; a linear classifier behind a weighted sum
    has it as it is. The weights a_k are taken as given: a patch's part in the others' softmax is not counted.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def fits(self, model: nn.Module) -> str | None:
        if isinstance(model, Additive):
            return None
        return "is no sum over patches; this method needs a model with evidence() and bias(), as abmil has"

    def __call__(self, model: nn.Module, features: Tensor, xy: Tensor, target: int) -> Float32:
        additive = cast(Additive, model)
        with frozen(model), torch.no_grad():
            evidence = additive.evidence(features, xy)  # (N, C)
            scores: Float32 = contrast(evidence, target).float().cpu().numpy()  # (N,)
        return scores


@explainers.register(
    "contribution", paper="Javed et al., NeurIPS 2022", unit="attribution", signed=True, class_specific=True
)
def contribution() -> Explainer:
    """What each patch adds to the class against the rest; with the bias, exactly the model's answer."""
    return Contribution()

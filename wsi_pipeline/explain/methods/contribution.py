"""Contribution: what each patch adds to the decision, exactly."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ...aggregate import Additive
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
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

    def fits(self, explained: ExplainedModel) -> str | None:
        if isinstance(explained.module, Additive):
            return None
        return "is no sum over patches; this method needs a model with evidence() and bias(), as abmil has"

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        additive = cast(Additive, explained.module)
        with frozen(explained.module), torch.no_grad():
            evidence = additive.evidence(features, xy)  # (N, C)
        return Attribution(explained.target(target)(evidence))  # (N,)


@explainers.register("contribution", paper="Javed et al., NeurIPS 2022")
def contribution() -> Explainer:
    """What each patch adds to the class against the rest; with the bias, exactly the model's answer."""
    return Contribution()

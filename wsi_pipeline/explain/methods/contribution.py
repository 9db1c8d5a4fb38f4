"""Contribution: each patch's summand in the target, exactly."""

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
    """t of an additive model's evidence, c_k = a_k w · h_k: the scores and t of the bias add up to t.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. The decomposition of
    attention-based MIL that Javed et al., "Additive MIL: Intrinsically Interpretable Multiple Instance Learning for
    Pathology", NeurIPS 2022, build their model on; a linear classifier after a weighted sum has it as well. The weights
    a_k are taken as given: the effect of a patch on the other patches' softmax weights is not counted.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        if isinstance(explained.module, Additive):
            return None
        return "is not a sum over patches; this method needs a model with evidence() and bias(), as abmil has"

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        additive = cast(Additive, explained.module)
        with frozen(explained.module), torch.no_grad():
            evidence = additive.evidence(features, xy)  # (N, C)
        return Attribution(explained.target(target)(evidence))  # (N,)


@explainers.register("contribution", paper="Javed et al., NeurIPS 2022")
def contribution() -> Explainer:
    """Contribution of each patch to the target; with the bias, they add up to it exactly."""
    return Contribution()

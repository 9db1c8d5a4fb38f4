"""Transformer attribution: relevance times gradient of attention, multiplied through all layers."""

from __future__ import annotations

import torch
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.attention_maps import weighted_rows
from ..transformer.relevance import first_relevance, last_relevance
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import first_gradient, last_gradient, trace
from . import Explainer, explainers


def transformer_attribution_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """The class token's row (P,) of the product of rownorm(I + mean_h relu(∇A_l ⊙ R_A_l)).

    Unsigned ("attribution"); ∇A is dt/dA, t the target of the task, see ``explained_model``. Chefer, Gur and Wolf,
    "Transformer Interpretability Beyond Attention Visualization", CVPR 2021; each row is scaled to sum to 1, as in the
    authors' code, so patches, class token and padding sum to 1. R_A is computed as in ``relevance``.
    """
    traced = trace(model, features, xy)
    relevance = last_relevance(model, traced, target)
    weights = last_gradient(model, traced, target), relevance.attended / 2  # 2 x (H, d)
    gradient, found = (traced.last.times_values(w) for w in weights)  # (H, P)
    row = class_token(traced.last) + (traced.last.class_row * gradient * found).relu_().mean(0)
    row /= row.sum()
    factors = [first_gradient(model, traced, target), first_relevance(model, traced, relevance) / 2]  # (H, T, d)
    tokens, result = row[traced.first.padding :], torch.zeros_like(row)  # padding has no values, so no relevance
    for rows, block in weighted_rows(traced.first, factors):
        arriving = tokens[rows] / (1 + block.sum(1))  # (B,)
        result[traced.first.padding :][rows] += arriving
        result += arriving @ block
    return result


@explainers.register("transformer_attribution", paper="Chefer et al., CVPR 2021")
def transformer_attribution() -> Explainer:
    """Relevance of attention times the target's gradient, multiplied through all layers; for transmil."""
    return TokenExplainer(transformer_attribution_row, unit="attribution", class_specific=True)

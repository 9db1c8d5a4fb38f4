"""Transformer attribution: relevance times gradient of attention, followed through all layers."""

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


def attributed(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """The class token's row (P,) of the product of rownorm(I + mean_h relu(∇A_l ⊙ R_A_l)).

    Chefer, Gur and Wolf, "Transformer Interpretability Beyond Attention Visualization", CVPR 2021; each row is made to
    sum to 1, as in the authors' code, so patches, class token and padding share 1. Relevance as in ``relevance``.
    """
    seen = trace(model, features, xy)
    relevance = last_relevance(model, seen, target)
    weights = last_gradient(model, seen, target), relevance.attended / 2  # 2 x (H, d)
    gradient, found = (seen.last.times_values(w) for w in weights)  # (H, P)
    row = class_token(seen.last) + (seen.last.class_row * gradient * found).relu_().mean(0)
    row /= row.sum()
    factors = [first_gradient(model, seen, target), first_relevance(model, seen, relevance) / 2]  # (H, T, d)
    tokens, result = row[seen.first.padding :], torch.zeros_like(row)  # padding has no values, so no relevance
    for rows, block in weighted_rows(seen.first, factors):
        arriving = tokens[rows] / (1 + block.sum(1))  # (B,)
        result[seen.first.padding :][rows] += arriving
        result += arriving @ block
    return result


@explainers.register("transformer_attribution", paper="Chefer et al., CVPR 2021")
def transformer_attribution() -> Explainer:
    """Relevance of attention times its gradient for the class, followed through all layers."""
    return TokenExplainer(attributed, unit="attribution", class_specific=True)

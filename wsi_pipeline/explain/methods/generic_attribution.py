"""Generic attention explainability: attention times gradient, multiplied through all layers."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.attention_maps import weighted_rows
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import first_gradient, last_gradient, trace
from . import Explainer, explainers


def generic_attribution_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """The class token's row (P,) of R, where R <- R + mean_h relu(∇A ⊙ A) R from the first layer to the last.

    Unsigned ("attribution"); ∇A is dt/dA, t the target of the task, see ``explained_model``. Chefer, Gur and Wolf,
    "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021, the
    rule for self-attention. With a zero gradient R is the identity and all patches score 0.
    """
    traced = trace(model, features, xy)
    gradient = traced.last.times_values(last_gradient(model, traced, target))  # (H, P)
    row = class_token(traced.last) + (gradient * traced.last.class_row).relu_().mean(0)
    arriving, result = row[traced.first.padding :], row.clone()
    for rows, block in weighted_rows(traced.first, [first_gradient(model, traced, target)]):
        result += arriving[rows] @ block
    return result


@explainers.register("generic_attribution", paper="Chefer et al., ICCV 2021")
def generic_attribution() -> Explainer:
    """Attention times the target's gradient, multiplied through all layers; for transmil."""
    return TokenExplainer(generic_attribution_row, unit="attribution", class_specific=True)

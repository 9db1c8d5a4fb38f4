"""Generic attention explainability: attention times gradient, followed through all layers."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.attention_maps import weighted_rows
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import first_gradient, last_gradient, trace
from . import Explainer, explainers


def propagated(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """The class token's row (P,) of R, where R <- R + mean_h relu(∇A ⊙ A) R from the first layer to the last.

    Chefer, Gur and Wolf, "Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
    Transformers", ICCV 2021, self-attention's rule. Without gradient R is the identity and all patches score 0.
    """
    seen = trace(model, features, xy)
    gradient = seen.last.times_values(last_gradient(model, seen, target))  # (H, P)
    row = class_token(seen.last) + (gradient * seen.last.class_row).relu_().mean(0)
    arriving, result = row[seen.first.padding :], row.clone()
    for rows, block in weighted_rows(seen.first, [first_gradient(model, seen, target)]):
        result += arriving[rows] @ block
    return result


@explainers.register("generic_attribution", paper="Chefer et al., ICCV 2021")
def generic_attribution() -> Explainer:
    """Attention times its gradient for the class, followed through all layers."""
    return TokenExplainer(propagated, unit="attribution", class_specific=True)

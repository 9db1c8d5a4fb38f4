"""Partial LRP: relevance of the last layer's attention, and no further."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.relevance import last_relevance
from ..transformer.token_explainer import TokenExplainer
from ..transformer.trace import trace
from . import Explainer, explainers


def last_layer(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """mean_h relu(R_A) of the class token's row (P,) in the last layer, R_A as in ``relevance``.

    Voita et al., "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting, the Rest Can Be Pruned",
    ACL 2019, trace relevance to heads; Chefer et al., CVPR 2021, read the last layer's row over the tokens off it.
    Before the cut at zero the rows of all heads hold half of what reaches A V; the values hold the other half.
    """
    seen = trace(model, features, xy)
    coefficients = last_relevance(model, seen, target).attended / 2  # (H, d)
    return (seen.last.class_row * seen.last.times_values(coefficients)).relu_().mean(0)


@explainers.register("partial_lrp", paper="Voita et al., ACL 2019")
def partial_lrp() -> Explainer:
    """Relevance of the last layer's attention for the class, by layer-wise relevance propagation down to it."""
    return TokenExplainer(last_layer, unit="attribution", class_specific=True)

"""Partial LRP: relevance of the last layer's attention, not propagated further."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.relevance import last_relevance
from ..transformer.token_explainer import TokenExplainer
from ..transformer.trace import trace
from . import Explainer, explainers


def partial_lrp_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:
    """mean_h relu(R_A) of the class token's row (P,) in the last layer, R_A as in ``relevance``.

    Unsigned ("attribution"), the total relevance is 1; t, the target of the task (see ``explained_model``), is the
    linear unit that it starts from. Voita et al., "Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy
    Lifting, the Rest Can Be Pruned", ACL 2019, trace relevance to heads; Chefer et al., CVPR 2021, read the last
    layer's row over the tokens from it. Before the cut at zero, the rows of all heads have half of the relevance that
    reaches A V; the values have the other half.
    """
    traced = trace(model, features, xy)
    coefficients = last_relevance(model, traced, target).attended / 2  # (H, d)
    return (traced.last.class_row * traced.last.times_values(coefficients)).relu_().mean(0)


@explainers.register("partial_lrp", paper="Voita et al., ACL 2019")
def partial_lrp() -> Explainer:
    """Relevance of the last layer's attention, by layer-wise relevance propagation down to it; for transmil."""
    return TokenExplainer(partial_lrp_row, unit="attribution", class_specific=True)

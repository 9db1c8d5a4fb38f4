"""Attention rollout: attention followed through all layers, for every class alike."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.attention_maps import mean_pull
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import trace
from . import Explainer, explainers


def rolled_out(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:  # noqa: ARG001
    """The class token's row (P,) of the product of (A_l + I) / 2, A_l the mean over heads.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. With exact attention the row is a
    distribution: with class token it sums to 1. Nystrom's rows sum to about 1 and may hold slightly negative
    numbers; nothing is normalised or clamped. Padding, which is in no paper, keeps what reaches it.
    """
    seen = trace(model, features, xy)
    row = (class_token(seen.last) + seen.last.class_row.mean(0)) / 2
    return (row + mean_pull(seen.first, row)) / 2


@explainers.register("rollout", paper="Abnar and Zuidema, ACL 2020")
def rollout() -> Explainer:
    """Attention of all layers, followed from the class token down to the patches; the same for every class."""
    return TokenExplainer(rolled_out, unit="attention", class_specific=False)

"""Attention rollout: attention multiplied through all layers, the same for every class."""

from __future__ import annotations

from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..transformer.attention_maps import mean_pull
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import trace
from . import Explainer, explainers


def rollout_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target) -> Tensor:  # noqa: ARG001
    """The class token's row (P,) of the product of (A_l + I) / 2, A_l the mean over heads.

    Unsigned weights ("attention"), which do not depend on the target. Abnar and Zuidema, "Quantifying Attention Flow in
    Transformers", ACL 2020. With exact attention the row is a distribution: including the class token it sums to 1.
    Nystrom's rows sum to about 1 and may have slightly negative entries; nothing is normalised or clamped. Deviation:
    padding, which the paper does not have, keeps the weight that reaches it.
    """
    traced = trace(model, features, xy)
    row = (class_token(traced.last) + traced.last.class_row.mean(0)) / 2
    return (row + mean_pull(traced.first, row)) / 2


@explainers.register("rollout", paper="Abnar and Zuidema, ACL 2020")
def rollout() -> Explainer:
    """Attention of all layers, from the class token down to the patches; the same for every class; for transmil."""
    return TokenExplainer(rollout_row, unit="attention", class_specific=False)

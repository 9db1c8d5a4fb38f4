"""Head-wise attribution: attention followed through all layers, each head with its importance, times the feedback."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..method_options import check_whole
from ..transformer.attention_maps import attention_map, magnitude
from ..transformer.reasoning_feedback import reasoning_feedback
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import Layer, first_gradient, last_gradient, trace
from . import Explainer, explainers


def perceived(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """|r| W: r the class token's row (P,) of R, where R <- R + Σ_h I_h A_h R from the first layer to the last.

    Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023. I_h is the mean of
    |A_hᵀ ∇A_h| over all pairs of tokens, over the sum of these means: how much the class depends on the head. With one
    head r is followed by plain attention. Where no head matters, all count the same.
    """
    seen = trace(model, features, xy)
    rows = seen.last.class_row  # (H, P)
    gradient = seen.last.times_values(last_gradient(model, seen, target))
    only = rows[:, seen.last.padding :].abs().sum(1) * gradient.abs().sum(1)  # one row: |A_hᵀ ∇A_h| is a product
    row = class_token(seen.last) + shares(only) @ rows
    row = row + weighted_pull(seen.first, row, first_gradient(model, seen, target))
    return row.abs() * reasoning_feedback(model, features, xy, target, steps)


def shares(importance: Tensor) -> Tensor:
    """(H,) over its sum."""
    total = importance.sum()
    return importance / total if total > 0 else torch.full_like(importance, 1 / len(importance))


def weighted_pull(layer: Layer, row: Tensor, gradient: Tensor) -> Tensor:
    """row · Σ_h I_h A_h of a row (P,), with dt/dO (H, T, d): (P,)."""
    arriving = row[layer.padding :, None].expand(len(gradient), -1, 1)  # (H, T, 1)
    pulled = attention_map(layer).pull(torch.cat([gradient, arriving], 2))  # (H, P, d + 1)
    weights = shares(magnitude(pulled[:, layer.padding :, :-1], layer.values()[:, layer.padding :]))
    return weights @ pulled[:, :, -1]


@explainers.register("head_wise", paper="Chen et al., TMLR 2023")
def head_wise(*, steps: int = 20) -> Explainer:
    """Attention of all layers, each head by its importance, times the last layer's feedback for the class.

    ``steps``: how many bags from nothing to the whole the feedback is averaged over; each costs a forward pass.
    """
    check_whole("steps", steps)
    return TokenExplainer(functools.partial(perceived, steps=steps), unit="attribution", class_specific=True)

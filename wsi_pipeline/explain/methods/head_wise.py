"""Head-wise attribution: attention multiplied through all layers, heads weighted by importance, times the feedback."""

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


def head_wise_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """|r| W: r the class token's row (P,) of R, where R <- R + Σ_h I_h A_h R from the first layer to the last.

    Unsigned ("attribution"); ∇A is dt/dA, t the target of the task, see ``explained_model``. Chen et al., "Beyond
    Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023. W is ``reasoning_feedback``. I_h is the
    mean of |A_hᵀ ∇A_h| over all pairs of tokens, over the sum of these means: how much t depends on the head. With one
    head, R is the product of plain attention. Where no head matters, all heads count equally.
    """
    traced = trace(model, features, xy)
    rows = traced.last.class_row  # (H, P)
    gradient = traced.last.times_values(last_gradient(model, traced, target))
    importance = rows[:, traced.last.padding :].abs().sum(1) * gradient.abs().sum(1)  # a product, as there is one row
    row = class_token(traced.last) + shares(importance) @ rows
    row = row + weighted_pull(traced.first, row, first_gradient(model, traced, target))
    return row.abs() * reasoning_feedback(model, features, xy, target, steps)


def shares(importance: Tensor) -> Tensor:
    """Importance (H,) over its sum; equal shares where the sum is 0."""
    total = importance.sum()
    return importance / total if total > 0 else torch.full_like(importance, 1 / len(importance))


def weighted_pull(layer: Layer, row: Tensor, gradient: Tensor) -> Tensor:
    """row · Σ_h I_h A_h of a row (P,), given dt/dO (H, T, d): (P,)."""
    arriving = row[layer.padding :, None].expand(len(gradient), -1, 1)  # (H, T, 1)
    pulled = attention_map(layer).pull(torch.cat([gradient, arriving], 2))  # (H, P, d + 1)
    weights = shares(magnitude(pulled[:, layer.padding :, :-1], layer.values()[:, layer.padding :]))
    return weights @ pulled[:, :, -1]


@explainers.register("head_wise", paper="Chen et al., TMLR 2023")
def head_wise(*, steps: int = 20) -> Explainer:
    """Attention of all layers, heads weighted by importance, times the last layer's feedback; for transmil.

    Parameters
    ----------
    steps : int
        Scaled bags over which the feedback is averaged; each costs a forward pass.
    """
    check_whole("steps", steps)
    return TokenExplainer(functools.partial(head_wise_row, steps=steps), unit="attribution", class_specific=True)

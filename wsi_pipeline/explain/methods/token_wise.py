"""Token-wise attribution: attention multiplied through all layers, values weighted by length, times the feedback."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ..explained_model import Target
from ..method_options import check_whole
from ..transformer.attention_maps import mean_pull
from ..transformer.reasoning_feedback import reasoning_feedback
from ..transformer.relevance import ratio
from ..transformer.token_explainer import TokenExplainer, class_token
from ..transformer.trace import Layer, trace
from . import Explainer, explainers


def token_wise_row(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """|r| W: r the class token's row (P,) of R, where R <- R + mean_h(A) D R from the first layer to the last.

    Unsigned ("attribution"); W, ``reasoning_feedback``, depends on t, the target of the task, see ``explained_model``.
    Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023. D is the diagonal of
    the length of a token's value, after the output projection, over the length of the token. A token of length 0 (its
    patch's embedding is cut off by ReLU) and padding have D = 0. Deviation: the authors start at a middle layer of
    twelve; here all layers are used.
    """
    traced = trace(model, features, xy)
    row = class_token(traced.last)
    row = row + traced.last.class_row.mean(0) * lengthening(traced.last)
    row = row + mean_pull(traced.first, row) * lengthening(traced.first)
    return row.abs() * reasoning_feedback(model, features, xy, target, steps)


def lengthening(layer: Layer) -> Tensor:
    """Diagonal of D (P,): |W_O v_j| / |z_j|."""
    values = F.linear(F.linear(layer.normed, layer.value_weight()), layer.output_weight())  # (T, dim)
    return F.pad(ratio(values.norm(dim=1), layer.tokens.norm(dim=1)), (layer.padding, 0))


@explainers.register("token_wise", paper="Chen et al., TMLR 2023")
def token_wise(*, steps: int = 20) -> Explainer:
    """Attention of all layers, values weighted by length, times the last layer's feedback; for transmil.

    Parameters
    ----------
    steps : int
        Scaled bags over which the feedback is averaged; each costs a forward pass.
    """
    check_whole("steps", steps)
    return TokenExplainer(functools.partial(token_wise_row, steps=steps), unit="attribution", class_specific=True)

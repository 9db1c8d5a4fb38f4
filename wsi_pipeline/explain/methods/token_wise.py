"""Token-wise attribution: attention followed through all layers, each value with its length, times the feedback."""

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


def perceived(model: TransMIL, features: Tensor, xy: Tensor, target: Target, steps: int) -> Tensor:
    """|r| W: r the class token's row (P,) of R, where R <- R + mean_h(A) D R from the first layer to the last.

    Chen et al., "Beyond Intuition: Rethinking Token Attributions inside Transformers", TMLR 2023. D holds how much
    longer a token's value is, behind the output projection, than the token. A token of length 0 (its patch's
    embedding is cut off by ReLU) and padding have D = 0. The authors start at a middle layer of twelve; here all count.
    """
    seen = trace(model, features, xy)
    row = class_token(seen.last)
    row = row + seen.last.class_row.mean(0) * lengthening(seen.last)
    row = row + mean_pull(seen.first, row) * lengthening(seen.first)
    return row.abs() * reasoning_feedback(model, features, xy, target, steps)


def lengthening(layer: Layer) -> Tensor:
    """D (P,): |W_O v_j| / |z_j|."""
    values = F.linear(F.linear(layer.normed, layer.value_weight()), layer.output_weight())  # (T, dim)
    return F.pad(ratio(values.norm(dim=1), layer.tokens.norm(dim=1)), (layer.padding, 0))


@explainers.register("token_wise", paper="Chen et al., TMLR 2023")
def token_wise(*, steps: int = 20) -> Explainer:
    """Attention of all layers, each token by the length of its value, times the last layer's feedback for the class.

    ``steps``: how many bags from nothing to the whole the feedback is averaged over; each costs a forward pass.
    """
    check_whole("steps", steps)
    return TokenExplainer(functools.partial(perceived, steps=steps), unit="attribution", class_specific=True)

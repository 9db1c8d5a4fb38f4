"""Attention: how much the model looked at each patch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from . import Explainer, explainers

_NEEDS = "gives no attention; this method needs a model whose patches have weights"


class Attention:
    """The model's own weights, summing to 1: a_k of attention-based MIL, the class token's row of a transformer.

    They say where the model looked, not which way a patch pulled, so a patch that speaks against the class may score
    highest (Jain and Wallace, "Attention is not Explanation", NAACL 2019). Where each class has weights of its own,
    those of the target are taken.
    """

    unit: Unit = "attention"
    signed = False
    class_specific = False

    def fits(self, explained: ExplainedModel) -> str | None:
        """Asks the model for one patch of zeros, as wide as its first linear layer takes them."""
        model = explained.module
        first = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
        if first is None:
            return None
        try:
            attention = _attention(model, first.weight.new_zeros(1, first.in_features), first.weight.new_zeros(1, 2))
        except RuntimeError:  # its first linear layer is not the one that sees the features: the bag will tell
            return None
        return _NEEDS if attention is None else None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        model = explained.module
        attention = _attention(model, features, xy)
        if attention is None:
            raise ConfigError(f"the model {type(model).__name__} {_NEEDS}; leave attention out of explain.methods")
        return Attribution(attention if attention.ndim == 1 else attention[target])  # (N,)


def _attention(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor | None:
    with frozen(model), torch.no_grad():
        attention: Tensor | None = model(features, xy).attention
    return attention


@explainers.register("attention", paper="Ilse et al., ICML 2018")
def attention() -> Explainer:
    """The model's own attention: where it looked, not which way a patch pulled."""
    return Attention()

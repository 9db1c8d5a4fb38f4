"""Attention: the model's own weight of each patch."""

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
    """The model's own weights: a_k of attention-based MIL, the class token's row of a transformer.

    Unsigned weights ("attention") that sum to 1. They do not explain t: they show which patches the model read, not in
    which direction a patch changed t, so evidence against the class may score highest (Jain and Wallace, "Attention is
    not Explanation", NAACL 2019). Where each class has its own weights, those of the requested class are used.
    """

    unit: Unit = "attention"
    signed = False
    class_specific = False

    def fits(self, explained: ExplainedModel) -> str | None:
        """Run the model on one patch of zeros, as wide as its first linear layer."""
        model = explained.module
        first = next((m for m in model.modules() if isinstance(m, nn.Linear)), None)
        if first is None:
            return None
        try:
            attention = _attention(model, first.weight.new_zeros(1, first.in_features), first.weight.new_zeros(1, 2))
        except RuntimeError:  # the first linear layer does not take the features: only a real bag can show a misfit
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
    """The model's own attention: the weight of each patch, not the direction of its effect."""
    return Attention()

"""Methods for transformers: relevance of tokens, given back to the patches.

Only the class token's row of a product of maps is wanted, so a method carries one row from the last layer to the
first: r <- r (α I + β M). A row has P numbers, in the frame of ``nystrom``: zero padding, class token, patches, and the
first patches' copies that fill up the square. Padding is made anew in each layer and comes from no token, so what has
reached it stays there. A copy's relevance is its patch's; what the class token and the padding keep is told beside the
scores. PPEG between the layers is no attention; products of attention maps pass it by, as they pass a convolution or
an MLP in the published models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...aggregate.transmil import TransMIL
from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel, Target
from ..frozen import frozen
from .trace import Layer

_NEEDS = "has no class token that attends to the patches; this method needs a transmil model"
Row = Callable[[TransMIL, Tensor, Tensor, Target], Tensor]  # model, features, xy, target -> (P,)


@dataclass(frozen=True)
class TokenExplainer:
    """A method that gives each token of TransMIL a relevance. ``row`` runs on the frozen model, without gradient."""

    row: Row
    unit: Unit
    class_specific: bool
    signed: bool = False

    def fits(self, explained: ExplainedModel) -> str | None:
        return None if isinstance(explained.module, TransMIL) else _NEEDS

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        model = explained.module
        if not isinstance(model, TransMIL):
            raise ConfigError(f"the model {type(model).__name__} {_NEEDS}; leave it out of explain.methods")
        with frozen(model), torch.no_grad():
            shares = model.fold_shares(self.row(model, features, xy, explained.target(target)), len(features))
        residual = {"class token": float(shares.class_token), "padding": float(shares.padding)}
        return Attribution(shares.patches, residual)


def class_token(layer: Layer) -> Tensor:
    """The row (P,) that is the class token itself."""
    row = layer.tokens.new_zeros(layer.padding + len(layer.tokens))
    row[layer.padding] = 1
    return row

"""Methods for transformers: relevance of tokens, mapped back to the patches.

Only the class token's row of a product of maps is needed, so a method propagates one row from the last layer to the
first: r <- r (α I + β M). A row has P entries, in the frame of ``nystrom``: zero padding, class token, patches, and the
copies of the first patches that fill up the square. Padding is new in each layer and comes from no token, so what
reaches it stays there. A copy's relevance is added to its patch; what the class token and the padding keep is reported
as residual. PPEG between the layers is not attention; products of attention maps ignore it, as they ignore convolutions
and MLPs in the published models.
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
    """A method that gives each token of TransMIL a relevance; ``row`` is called on the frozen model."""

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
    """The row (P,) that is 1 at the class token and 0 elsewhere."""
    row = layer.tokens.new_zeros(layer.padding + len(layer.tokens))
    row[layer.padding] = 1
    return row

"""Leave one out: the change of the target when a patch is removed from the bag."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...aggregate import Additive
from ...errors import ConfigError
from ...types import Unit
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from ..method_options import check_flag
from ..weighted_mean import is_weighted_mean, weighted_mean
from . import Explainer, explainers

_NEEDS = (
    "would need one forward pass per patch; this method needs a softmax-weighted or plain mean of patches, "
    "as abmil, clam and mean are, or its option naive: true"
)


class LeaveOneOut:
    """t(X) - t(X without k); the other patches take over the weight of k, as in a slide without it.

    Signed, in units of t ("attribution"); t is the target of the task, see ``explained_model``. "One removed" of Early
    et al., "Model Agnostic Interpretability for Multiple Instance Learning", ICLR 2022; the occlusion of Zeiler and
    Fergus, ECCV 2014, with the patch removed instead of covered. Similar patches replace each other, so a large group
    of them scores low. A slide of one patch is compared with the model's bias, or with one patch of zeros where it has
    none.
    """

    unit: Unit = "attribution"
    signed = True
    class_specific = True

    def __init__(self, naive: bool) -> None:
        self.naive = naive

    def fits(self, explained: ExplainedModel) -> str | None:
        return None if self.naive or has_closed_form(explained.module) else _NEEDS

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        model = explained.module
        if self.fits(explained) is not None:
            raise ConfigError(f"the model {type(model).__name__} {_NEEDS}; leave it out of explain.methods")
        change = closed_form if has_closed_form(model) else one_by_one
        with frozen(model), torch.no_grad():
            changes = change(model, features, xy)  # (N, C)
        return Attribution(explained.target(target)(changes))


def has_closed_form(model: nn.Module) -> bool:
    """Whether the logits are a softmax-weighted mean of patches, see ``HasWeightedMean``."""
    return is_weighted_mean(model)


def closed_form(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """Change of the logits by each patch, (N, C), in O(N · D), for a model with the closed form.

    y = b + sum_j e_j with e_j = a_j v_j, and without k all other a_j grow by 1 / (1 - a_k), so the change is
    (e_k - a_k sum_j e_j) / (1 - a_k). A patch of more weight than all others together is removed explicitly.
    """
    logits, attention = model(features, xy)  # (C,); (N,), (C, N) or None
    if isinstance(model, Additive):
        evidence = model.evidence(features, xy)  # (N, C)
        weights = torch.full_like(evidence[:, 0], 1 / len(features)) if attention is None else attention
        weights = weights.mT if weights.ndim == 2 else weights[:, None]  # (N, C) or (N, 1)
    else:
        parts = weighted_mean(model, features, xy)
        if parts is None:
            raise ConfigError(
                f"the weighted mean that {type(model).__name__} states is not its logits; correct the model"
            )
        weights = parts.log_weights.softmax(0).to(features)
        evidence = weights * parts.values.to(features)
    change = (evidence - weights * evidence.sum(0)) / (1 - weights)
    for k in (weights > 0.5).any(1).nonzero()[:, 0].tolist():
        change[k] = logits - logits_without(model, features, xy, k)
    return change


def one_by_one(model: nn.Module, features: Tensor, xy: Tensor) -> Tensor:
    """The definition, (N, C): N + 1 forward passes."""
    logits: Tensor = model(features, xy).logits
    return torch.stack([logits - logits_without(model, features, xy, k) for k in range(len(features))])


def logits_without(model: nn.Module, features: Tensor, xy: Tensor, k: int) -> Tensor:
    """Logits (C,) of the bag without patch k; of an empty bag the bias, or those of a patch of zeros."""
    if len(features) == 1:
        if isinstance(model, Additive):
            return model.bias()
        parts = weighted_mean(model, features, xy)
        return model(torch.zeros_like(features), xy).logits if parts is None else parts.bias.to(features)
    kept = torch.arange(len(features), device=features.device) != k  # (N,)
    logits: Tensor = model(features[kept], xy[kept]).logits
    return logits


@explainers.register("leave_one_out", paper="Early et al., ICLR 2022")
def leave_one_out(*, naive: bool = False) -> Explainer:
    """Change of the target when a patch is left out; exact and in one pass for abmil, clam and mean.

    Parameters
    ----------
    naive : bool
        Also explain other models, with one forward pass per patch: hours for a large slide.
    """
    check_flag("naive", naive)
    return LeaveOneOut(naive)

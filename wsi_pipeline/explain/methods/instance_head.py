"""Instance head: what the model's own classifier of patches predicts for each."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ...aggregate import InstanceLogits
from ...errors import ConfigError
from ..explained_model import Attribution, ExplainedModel
from ..frozen import frozen
from . import Explainer, ExplainerUnit, explainers


class InstanceHead:
    """Probability of the class by the model's instance classifier, in the slide's context.

    DTFD: Zhang et al., CVPR 2022, L_k^c = K a_k w_c · h_k of the first tier, p_k = softmax_c(L_k). CLAM: the class's
    instance classifier (Lu et al., 2021), in or not. DSMIL: softmax of the instance stream (Li et al., 2021). For
    labels that do not exclude each other the softmax over the classes becomes a sigmoid of each.
    ``instance`` asks the bag's classifier instead, of a bag of one. An additive model's own numbers are not
    probabilities: they are its ``contribution``. Values and risks have no probability, so this does not fit them.
    """

    unit: ExplainerUnit = "probability"
    signed = False
    class_specific = True

    def fits(self, explained: ExplainedModel) -> str | None:
        if not isinstance(explained.module, InstanceLogits):
            return "has no classifier of patches; this method needs a model with instance_logits(), as dtfd has"
        if not explained.has_probabilities:
            return f"predicts no probability ({explained.task}); this method needs one, instance does not"
        return None

    def __call__(self, explained: ExplainedModel, features: Tensor, xy: Tensor, target: int) -> Attribution:
        if reason := self.fits(explained):
            raise ConfigError(f"the model {type(explained.module).__name__} {reason}; leave it out of explain.methods")
        with frozen(explained.module), torch.no_grad():
            logits = cast(InstanceLogits, explained.module).instance_logits(features, xy)
        return Attribution(probabilities(logits, explained)[:, target])  # (N,)


def probabilities(logits: Tensor, explained: ExplainedModel) -> Tensor:
    """(N, C) of (N, C), by the model's link; or of (N, C, 2), each class in or not, of the second of each."""
    return logits.softmax(2)[..., 1] if logits.ndim == 3 else explained.predictions(logits)


@explainers.register("instance_head", paper="Zhang et al., CVPR 2022")
def instance_head() -> Explainer:
    """Each patch's probability by the model's own classifier of patches; for dtfd, clam and dsmil."""
    return InstanceHead()
